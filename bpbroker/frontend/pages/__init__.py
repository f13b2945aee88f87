"""Pages for people under ``/ui/``: what the broker has, in a browser. They read, and change nothing.

Read ``dispatch`` first: it takes a request from the application and decides what makes the response. Then ``site`` (the
CherryPy application with all handlers), ``reading`` (its questions to the actors), ``viewer`` (the person who looks,
and what they may see), ``live`` (changes as they happen) and ``shown`` (how values look). ``sessions`` has the people
who signed in.
"""

from bpbroker.frontend.pages.dispatch import Pages as Pages
