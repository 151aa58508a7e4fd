"""What `make release` is made of: sources, application, interpreter, packing. scripts/make_release.py puts it together."""
