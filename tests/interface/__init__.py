"""The JSON interface, checked by schemathesis against its own description.

python3 -m venv /tmp/venv && /tmp/venv/bin/pip install schemathesis
/tmp/venv/bin/python -m unittest discover -t . -s tests/interface
"""
