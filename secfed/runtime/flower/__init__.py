"""Flower as the carrier: the only package that imports it.

Flower brings processes, TLS, node authentication and delivery. What is said is
secfed's own: signed orders and answers (``secfed.runtime.envelope``), which pass
unchanged. The pinned minor version is 1.41; a few of its inner functions are used, and
all of them are named here:

=================  ==========================================================
``superlink.py``   the coordinator's child: Flower's application behind two
                   listeners, of which the public one has the fleet API only
``supernode.py``   a site's child: Flower's SuperNode with short pauses
``coordinator.py`` registers the pinned node keys, starts a run, takes its task
``server_app.py``  the ServerApp, and orders over its grid with deadlines
``client_app.py``  the ClientApp: one handler for each phase of a round
``runner.py``      the resident process of a site that executes it, and only it
``bundle.py``      the app bundle that names the installed secfed; never executed
``site.py``        a SuperNode as a child, and the runner that works for it
``records.py``     sealed messages as Flower's records
``children.py``    how the two children are started and end with their parent
=================  ==========================================================
"""

import os

from secfed.runtime.flower.children import SWITCHES

# The runner is in our own process: what is off in Flower's children is off here, too.
os.environ.update(SWITCHES)
