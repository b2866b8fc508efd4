"""What people do with the page, in a real browser. Needs playwright and chromium, and is skipped without them.

apt-get install chromium
python3 -m venv /tmp/browser && /tmp/browser/bin/pip install playwright axe-playwright-python
/tmp/browser/bin/python -m unittest discover -t . -s tests/browser
"""
