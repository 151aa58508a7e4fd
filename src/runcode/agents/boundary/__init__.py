"""The machine boundary: while an agent's session is attached to a workspace, its work happens there and not here.

Owns: what a client's hooks ask (`requests`), the person's own permission rules
(`rules`, `codex_rules`) and exemptions (`exemptions`), what is decided from them
(`decisions`, pure; `places`, which paths belong to the work), what the client is told
(`answers`), and the command that it calls (`hook`).

Threat: the model, or whoever talks to it through a file or the box's output, writes a
command that looks as if it stayed on the box; a hook that dies half-way; a client that
runs what no hook has answered for.

Guarantee: while attached, a shell command is sent to the box, refused, or is one plain
call of `runcode`; nothing else is let through, except what the person exempted in a file
of theirs. Whatever cannot be decided ends with exit status 2, which every client takes
for a refusal. Detached, nothing is decided and nothing is said.
"""
