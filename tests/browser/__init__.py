"""Tests of the web interface in a real browser. They need Playwright and Chromium, and are skipped without them.

apt-get install chromium
python3 -m venv /tmp/browser && /tmp/browser/bin/pip install playwright axe-playwright-python
/tmp/browser/bin/python -m unittest discover -t . -s tests/browser
"""
