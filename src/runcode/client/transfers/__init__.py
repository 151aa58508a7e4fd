"""Files and folders to and from a workspace, over the 8-bit-clean exec channel.

`files` (one file), `tree_upload`, `tree_download` (folders); `local_files` is this
machine's half, `exchange` moves the bytes. Called by `cli.commands`.

Guarantee: constant memory; the final name, on either side, holds the old content
or the whole new one whose size and digest were checked; a link or a special
file here is never written through.
"""
