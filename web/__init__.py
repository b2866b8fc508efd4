"""HTTP below the pages: heads, connections, TLS, who may come in; and a small client.

Runs on: server; the client on a node that pushes.  Reached from: webui, pages, links.  Hands on to: nobody.
Threads: the server has them.  Errors: Refusal.
"""
