"""The interface for programs as schemathesis checks it against its own description.

Run them with schemathesis, which brings hypothesis along:

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install schemathesis
    /tmp/venv/bin/python -m unittest discover -t . -s tests/interface
"""
