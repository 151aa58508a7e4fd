"""ssh_config texts that a server may send: what ssh would act on trips the wire, the rest reaches nobody.

The spellings are those of readconf.c and misc.c (`strdelim`) of OpenSSH 9.2: blanks or one `=` around a
keyword, double quotes around it, any case; and some that ssh refuses but a person's paste may not.
"""

from __future__ import annotations

# Each runs a program or loads code on the laptop, reads another file, or sends ssh another way.
_RUNNING = {
    "ProxyCommand": "sh -c id",
    "LocalCommand": "id",
    "PermitLocalCommand": "yes",
    "KnownHostsCommand": "/bin/id %h",
    "Include": "/tmp/evil",
    "ProxyJump": "evil.example",
    "PKCS11Provider": "/tmp/evil.so",
    "SmartcardDevice": "/tmp/evil.so",
    "SecurityKeyProvider": "/tmp/evil.so",
    "XAuthLocation": "/tmp/evil",
}
_SPELLINGS = {
    "plain": "{keyword} {value}",
    "lower": "{lower} {value}",
    "upper": "{upper} {value}",
    "equals": "{keyword}={value}",
}
_ODD = {
    "mixed case": "pRoXyCoMmAnD id",
    "tab": "ProxyCommand\tid",
    "indented by a tab": "\tProxyCommand id",
    "indented by many blanks": " " * 300 + "ProxyCommand id",
    "blanks around equals": "ProxyCommand  =  id",
    "quoted keyword": '"ProxyCommand" id',
    "quoted keyword and equals": '"proxycommand"=id',
    "half a quote": '"ProxyCommand id',
    "empty quotes in front": '""ProxyCommand id',
    "equals in front": "=ProxyCommand id",
    "byte-order mark": "\ufeffProxyCommand id",
    "carriage return in front": "\rProxyCommand id",
    "behind a carriage return": "User x\rProxyCommand id",
    "behind a form feed": "User x\x0cProxyCommand id",
    "behind a line separator": "User x\u2028ProxyCommand id",
    "behind a next-line": "User x\x85ProxyCommand id",
    "behind a nul": "User x\0ProxyCommand id",
    "nul in front": "\0ProxyCommand id",
    "vertical tab in front": "\x0bProxyCommand id",
    "no-break space in front": "\xa0ProxyCommand id",
    "zero-width space in front": "\u200bProxyCommand id",
    "no newline at the end": "ProxyCommand id",
    "behind a commented line": "# harmless\nProxyCommand id",
    "match exec": 'Match exec "id"',
    "match exec with equals": "match=exec=id",
    "match host then exec": 'Match host x exec "id"',
    "match all": "Match all",
    "match in quotes": '"Match" exec id',
    "match final": "MATCH final",
    "include of a glob": "Include ~/.ssh/*",
    "exec alone": "exec id",
    "after 64 kilobytes": "User x\n" * 10000 + "ProxyCommand id",
}
TRIPPING: dict[str, str] = {
    **{
        f"{keyword} {spelling}": form.format(keyword=keyword, lower=keyword.lower(), upper=keyword.upper(), value=value)
        for keyword, value in _RUNNING.items()
        for spelling, form in _SPELLINGS.items()
    },
    **_ODD,
}

# What changes trust or opens the laptop, but runs nothing by itself: it is never given to ssh.
IGNORED: dict[str, str] = {
    "no checking": "StrictHostKeyChecking no",
    "another known_hosts": "UserKnownHostsFile /dev/null",
    "a global known_hosts": "GlobalKnownHostsFile /tmp/evil",
    "another alias": "HostKeyAlias evil.example",
    "agent": "ForwardAgent yes",
    "x11": "ForwardX11 yes\nForwardX11Trusted yes",
    "another agent": "IdentityAgent /tmp/evil.sock",
    "another key": "IdentityFile ~/.ssh/id_rsa\nIdentitiesOnly no",
    "another control socket": "ControlPath /tmp/evil\nControlMaster auto",
    "local forward": "LocalForward 0.0.0.0:22 127.0.0.1:22",
    "remote forward": "RemoteForward 2222 127.0.0.1:22",
    "dynamic forward": "DynamicForward 0.0.0.0:1080\nGatewayPorts yes",
    "environment": "SendEnv *\nSetEnv LD_PRELOAD=/tmp/evil.so",
    "remote command": "RemoteCommand id",
    "tunnel": "Tunnel yes",
    "host keys by dns": "VerifyHostKeyDNS yes",
    "updated host keys": "UpdateHostKeys yes",
    "canonical names": "CanonicalizeHostname always\nCanonicalDomains evil.example",
    "every host": "Host *\n  HostName evil.example",
    "old ciphers": "Ciphers 3des-cbc\nHostKeyAlgorithms ssh-dss",
    "passwords": "BatchMode no\nPasswordAuthentication yes",
    "escape sequences": "# \x1b]52;c;x\x07\u202e",
    "commented out": "# ProxyCommand id\n  #Match exec id",
    "64 kilobytes": "User x\n" * 10000,
}
