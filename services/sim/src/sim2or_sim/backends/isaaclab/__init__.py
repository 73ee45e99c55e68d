"""Isaac Lab 3 without Kit: Newton physics and cameras; an environment of its own (``make setup-isaac``)."""
