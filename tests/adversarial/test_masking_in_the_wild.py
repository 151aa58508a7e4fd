"""Secrets as people and agents really type them: in the wordings that a rule for the plain form does not know."""

from __future__ import annotations

import pytest

from runcode.controlplane.masking import mask_detail, mask_text

SECRET = "hunter2Zq9"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLWhlcmU"

# Each holds SECRET once or more, and no other secret.
COMMANDS = (
    # Short options in one word, and values that hang on them.
    f"curl -su admin:{SECRET} https://example.org",
    f"curl -sSLu admin:{SECRET} https://example.org",
    f"curl -kuadmin:{SECRET} https://example.org",
    f"curl --oauth2-bearer {SECRET} https://example.org",
    f"mysqladmin -u root password {SECRET}",
    f"nmcli dev wifi connect home password {SECRET}",
    f"docker login -u me -p{SECRET} registry.example.org",
    f"mongosh -u me -p{SECRET} db",
    f"ldapsearch -x -D cn=me -w{SECRET} -b dc=org",
    f"echo {SECRET} | sudo -kS apt update",
    f"sudo -S apt update <<< {SECRET}",
    f"docker login --password-stdin <<<'{SECRET}'",
    f"lftp -u me,{SECRET} sftp://example.org",
    f"kubectl create secret generic x --from-literal a={SECRET}",
    f"gh secret set NAME --body {SECRET}",
    f"gh secret set NAME -b {SECRET}",
    f"twine upload -u me -p {SECRET} dist/*",
    # Headers beyond Authorization.
    f"curl -H 'PRIVATE-TOKEN: {SECRET}' https://gitlab.example.org",
    f"curl -H 'Api-Key: {SECRET}' https://example.org",
    f"curl -H 'apikey: {SECRET}' https://example.org",
    f"curl --header 'Ocp-Apim-Subscription-Key: {SECRET}' https://example.org",
    f"curl -H 'DD-API-KEY: {SECRET}' https://example.org",
    f"curl -H'X-Vault-Token: {SECRET}' https://example.org",
    f"""python3 -c 'get(url, headers={{"Authorization": "Basic {SECRET}"}})'""",
    f"""python3 -c "get(url, headers={{'Authorization': 'token {SECRET}'}})" """,
    f"http example.org Authorization:{SECRET}",
    # Addresses.
    f"psql postgres://me:{SECRET}@{SECRET}@db.example.org/app",
    f"psql postgres://me:{SECRET}/{SECRET}@db.example.org/app",
    f"git clone https://{SECRET}0123456789abcdef@git.example.org/a.git",
    # Files of programs, written by a here-document or an echo.
    f"cat > ~/.aws/credentials <<EOF\n[default]\naws_secret_access_key = {SECRET}\nEOF",
    f"cat > a.ini <<EOF\n[db]\npassword={SECRET}\nEOF",
    f"cat > a.toml <<EOF\npassword = \"{SECRET}\"\nEOF",
    f'echo "machine example.org login me password {SECRET}" > ~/.netrc',
    f"""python3 -c 'password = "{SECRET}"'""",
    # SQL.
    f"""psql -c "ALTER USER app WITH PASSWORD '{SECRET}'" """,
    f"""mysql -e "CREATE USER 'a'@'%' IDENTIFIED BY '{SECRET}'" """,
    f"""mysql -e "SET PASSWORD FOR 'a'@'%' = PASSWORD('{SECRET}')" """,
    # Shells other than sh, and sh's own quoting.
    f"set -gx API_KEY {SECRET}",
    f"setenv API_KEY {SECRET}",
    f'$env:API_KEY = "{SECRET}"',
    f"export PASSWORD=$'{SECRET}'",
    f"PASSWORD='${SECRET}' ./run",
    f"PASS\"WORD\"=a'{SECRET}' ./run",
    f"SSHPASS={SECRET} sshpass -e ssh me@example.org",
    f"PASSWORD+={SECRET}",
    # A list of settings.
    f"mount -t cifs //host/share /mnt -o username=me,password={SECRET}",
    f"helm upgrade a b --set user=me,db.password={SECRET}",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_secret_of_the_wild_is_masked(command: str) -> None:
    masked, count = mask_text(command)
    assert count >= 1
    assert SECRET not in masked, masked
    # As part of a call of our own, and inside another shell's text.
    kept = mask_detail("command", {"text": command})
    assert SECRET not in str(kept["text"])


def test_known_tokens_are_masked_wherever_they_stand() -> None:
    pem = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\nQyNTUxOQ==\n-----END OPENSSH PRIVATE KEY-----"
    for text, gone in (
        (f"echo {JWT}", JWT.rpartition(".")[2]),
        (f"printf '%s' '{pem}' > k", "b3BlbnNzaC1rZXk"),
        (f"echo {pem!r}", "QyNTUxOQ"),
        ("export X=AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ):
        assert gone not in mask_text(text)[0]


# Nothing in these is a secret: a rule that hides them would hide what an agent did.
HARMLESS = (
    "curl -s https://example.org:8443/users/@me",
    "npm install --registry http://registry.example.org:4873/@scope/pkg",
    "git clone https://git@example.org/a.git",
    "git clone https://renovate-bot@example.org/a.git",
    "curl -H 'Content-Type: application/json' -H 'Accept: */*' https://example.org",
    "curl -su admin https://example.org",
    "set -eux",
    "set -euo pipefail",
    "sudo -k ls",
    "docker ps -p",
    "grep -rn password src",
    "grep -rn 'login password' src",
    "mount -o ro,user=me /dev/sda1 /mnt",
    "PASSWORD='$DB_PASSWORD' ./run",
    "export TOKEN=$(cat token)",
    "psql -c 'SELECT password FROM users'",
    "python3 -c 'password = read()'",
    "cat > a.py <<EOF\npassword = getpass()\nEOF",
    "gh secret list",
    "kubectl get secret x",
    "cat <<< hello",
    "token_count = 5",
)


@pytest.mark.parametrize("command", HARMLESS)
def test_what_is_no_secret_stays_to_be_read(command: str) -> None:
    assert mask_text(command) == (command, 0)
