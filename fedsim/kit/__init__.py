"""The conformance kit: what every algorithm must keep, checked by running it on a small cell (``fedsim check``)."""
