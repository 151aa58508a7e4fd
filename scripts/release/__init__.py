"""What scripts/make_release.py puts together: sources, application, interpreter, packing."""
