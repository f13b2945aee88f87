"""Pages for people under ``/ui/``: what the broker has, in a browser. They read, and change nothing.

Read ``dispatch`` first: it takes a request from the application and decides who makes the answer. Then ``site`` (the
CherryPy application with all handlers), ``reading`` (what it asks the actors), ``viewer`` (who looks, and what they
may see), ``live`` (changes as they happen) and ``shown`` (how values look). ``sessions`` has those who signed in.
"""

from bpbroker.frontend.pages.dispatch import Pages as Pages
