"""Drawing of charts as SVG."""
