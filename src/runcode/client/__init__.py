"""One person's machine: settings, paths, private files, API, sessions, attachments, ssh, transfers.

Standard library only.
"""
