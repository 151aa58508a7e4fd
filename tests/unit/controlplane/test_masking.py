"""Secrets in commands: found in every form that is promised, and nothing ordinary taken for one."""

# ruff: noqa: E501
from __future__ import annotations

import random
import string
from collections.abc import Callable

import pytest

from runcode.controlplane import masking, masking_rules
from runcode.controlplane.masking import mask_detail, mask_text
from runcode.core.errors import RunCodeError
from runcode.core.remote_command import render_exec
from runcode.gateway.journal import TEXT_HEAD, TEXT_TAIL, render_text

# Nothing that is true: of a shape that a provider's are of.
S = "Zq7hT9xLp2VbN4mKw8Rd"
GITHUB, JWT = f"ghp_{S}{S[:16]}", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{S}"
PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"

SECRET = [
    # Names that say so.
    (f"API_KEY={S} make deploy", "API_KEY=[masked] make deploy"),
    (f"export GITHUB_TOKEN='{S}' && gh pr list", "export GITHUB_TOKEN='[masked]' && gh pr list"),
    (f'DB_PASS="two words {S}" ./run.sh', 'DB_PASS="[masked]" ./run.sh'),
    (f"env AWS_SECRET_ACCESS_KEY={S} aws s3 ls", "env AWS_SECRET_ACCESS_KEY=[masked] aws s3 ls"),
    (f"PGPASSWORD={S} psql -h db", "PGPASSWORD=[masked] psql -h db"),
    (f"docker run -e SECRET_KEY_BASE={S} img", "docker run -e SECRET_KEY_BASE=[masked] img"),
    (f"docker run --env=DJANGO_SECRET={S} img", "docker run --env=DJANGO_SECRET=[masked] img"),
    (f"set -a; dbPassword={S}; run", "set -a; dbPassword=[masked]; run"),
    (f"tool --password {S} --verbose", "tool --password [masked] --verbose"),
    (f"tool --password={S} --verbose", "tool --password=[masked] --verbose"),
    (f"tool --api-key '{S} x' y", "tool --api-key '[masked]' y"),
    (f"tool --client-secret={S}", "tool --client-secret=[masked]"),
    (f"gpg --batch --passphrase {S} -d f", "gpg --batch --passphrase [masked] -d f"),
    (f"PASSWORD=${{PREFIX}}{S} run", "PASSWORD=[masked] run"),
    (f"echo TOKEN={S} >> .env", "echo TOKEN=[masked] >> .env"),
    # Programs.
    (f"mysql -u root -p{S} -e 'show tables'", "mysql -u root -p[masked] -e 'show tables'"),
    (f"mysqldump '-p{S} two' db", "mysqldump '-p[masked]' db"),
    (f"/usr/bin/mysql -p{S}", "/usr/bin/mysql -p[masked]"),
    (f"sudo -u x mysql -p{S}", "sudo -u x mysql -p[masked]"),
    (f"curl -u ann:{S} https://example.org", "curl -u ann:[masked] https://example.org"),
    (f"curl -uann:{S} https://example.org", "curl -uann:[masked] https://example.org"),
    (f"curl --user=ann:{S} https://example.org", "curl --user=ann:[masked] https://example.org"),
    (f"sshpass -p {S} ssh host", "sshpass -p [masked] ssh host"),
    (f"sshpass -p{S} ssh host", "sshpass -p[masked] ssh host"),
    (f"docker login -u ann -p {S} reg", "docker login -u ann -p [masked] reg"),
    (f"redis-cli -h r -a {S} ping", "redis-cli -h r -a [masked] ping"),
    (f"ldapsearch -D cn=a -w {S} -b dc=x", "ldapsearch -D cn=a -w [masked] -b dc=x"),
    (f"openssl enc -aes256 -pass pass:{S} -in f", "openssl enc -aes256 -pass pass:[masked] -in f"),
    (f"smbclient //s/d -U ann%{S}", "smbclient //s/d -U ann%[masked]"),
    (f"zip -P {S} a.zip f", "zip -P [masked] a.zip f"),
    (f"htpasswd -bc file ann {S}", "htpasswd -bc file ann [masked]"),
    (f"ssh-keygen -N {S} -f k", "ssh-keygen -N [masked] -f k"),
    (f"aws configure set aws_secret_access_key {S}", "aws configure set aws_secret_access_key [masked]"),
    (f"npm config set //packages.example.org/:_authToken {S}", "npm config set //packages.example.org/:_authToken [masked]"),
    (
        f"kubectl create secret generic db --from-literal=password={S}",
        "kubectl create secret generic db --from-literal=password=[masked]",
    ),
    (f"echo {S} | docker login --password-stdin", "echo [masked] | docker login --password-stdin"),
    (f"echo 'root:{S}' | chpasswd", "echo '[masked]' | chpasswd"),
    (f"printf '%s' {S} | sudo -S apt update", "printf '%s' [masked] | sudo -S apt update"),
    # Addresses and headers.
    (f"psql postgres://ann:{S}@db:5432/x", "psql postgres://ann:[masked]@db:5432/x"),
    (f"git clone https://x-access-token:{S}@github.com/a/b", "git clone https://x-access-token:[masked]@github.com/a/b"),
    (f"redis-cli -u redis://:{S}@host", "redis-cli -u redis://:[masked]@host"),
    (f"curl -H 'Authorization: Bearer {S}' x", "curl -H 'Authorization: Bearer [masked]' x"),
    (f'curl -H "authorization: Basic {S}==" x', 'curl -H "authorization: Basic [masked]" x'),
    (f"curl -H 'Authorization: Token {S}' x", "curl -H 'Authorization: Token [masked]' x"),
    (f"curl -H 'X-Api-Key: {S}' x", "curl -H 'X-Api-Key: [masked]' x"),
    (f"curl --cookie x -H 'Cookie: session={S}; a=b' y", "curl --cookie x -H 'Cookie: [masked]' y"),
    (f"git -c http.extraHeader='Authorization: Basic {S}' pull", "git -c http.extraHeader='Authorization: Basic [masked]' pull"),
    (f"curl 'https://h/x?a=1&access_token={S}&b=2'", "curl 'https://h/x?a=1&access_token=[masked]&b=2'"),
    # JSON, YAML.
    (f"""curl -d '{{"user": "a", "password": "{S}"}}' x""", """curl -d '{"user": "a", "password": "[masked]"}' x"""),
    (f"""curl -d "{{\\"token\\":\\"{S}\\"}}" x""", """curl -d "{\\"token\\":\\"[masked]\\"}" x"""),
    (f"cat > c.yml <<E\ndb:\n  password: {S}\nE", "cat > c.yml <<E\ndb:\n  password: [masked]\nE"),
    (f"cat > .env <<'E'\nA=1\nAPI_TOKEN={S}\nE", "cat > .env <<'E'\nA=1\nAPI_TOKEN=[masked]\nE"),
    # Tokens by their looks, wherever they stand.
    (f"echo {GITHUB}", "echo [masked]"),
    (f"x github_pat_{S}{S} y", "x [masked] y"),
    (f"x sk-proj-{S}{S}", "x [masked]"),
    (f"x sk-ant-api03-{S}-{S}", "x [masked]"),
    (f"x xoxb-123456789012-{S}", "x [masked]"),
    ("x AKIAIOSFODNN7EXAMPLE y", "x [masked] y"),
    (f"x rct_{S}", "x [masked]"),
    (f"x glpat-{S}", "x [masked]"),
    (f"x npm_{S}{S[:16]}", "x [masked]"),
    (f"x {JWT} y", "x [masked] y"),
    (f"cat > k <<E\n{PEM}\nE", "cat > k <<E\n-----BEGIN OPENSSH PRIVATE KEY-----[masked]-----END OPENSSH PRIVATE KEY-----\nE"),
    # Inside others' quotes.
    (f"bash -lc 'export TOKEN={S}; run'", "bash -lc 'export TOKEN=[masked]; run'"),
    (f"""ssh h "mysql -p{S} -e 'select 1'" """, """ssh h "mysql -p[masked] -e 'select 1'" """),
    (f"""sh -c "sh -c 'A_PASSWORD={S} x'" """, """sh -c "sh -c 'A_PASSWORD=[masked] x'" """),
    (f"a | (b; TOKEN={S} c) && d", "a | (b; TOKEN=[masked] c) && d"),
    # Open at the end.
    (f"export TOKEN='{S}", "export TOKEN='[masked]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), SECRET, ids=[shown[:60] for _, shown in SECRET])
def test_a_secret_is_masked_and_the_rest_stays(text: str, shown: str) -> None:
    masked, count = mask_text(text)
    assert masked == shown
    assert count == shown.count("[masked]")
    # What is masked already stays as it is.
    assert mask_text(masked)[0] == masked


@pytest.mark.parametrize(("text", "shown"), SECRET, ids=[shown[:60] for _, shown in SECRET])
def test_through_our_own_client_it_is_masked_as_well(text: str, shown: str) -> None:
    command = render_exec([text], workdir="/home/ubuntu/workspace", nonce="0a" * 8)
    detail = mask_detail("command", {"form": "exec", "text": command, "text_sha256": "0" * 64})
    assert S not in str(detail)
    assert "b3BlbnNzaC1r" not in str(detail)
    assert detail["ours"] == 1
    assert str(detail["text"]).startswith("runcode exec -- ")
    # Its digest would let somebody try passwords.
    assert "text_sha256" not in detail
    # Words of their own, as `exec -- a b c` sends them.
    if "\n" not in text and "|" not in text and "'" not in text and '"' not in text and ";" not in text:
        words = render_exec(text.split(" "), workdir=None, nonce="0a" * 8)
        assert S not in str(mask_detail("command", {"text": words}))


@pytest.mark.parametrize("at", range(40))
def test_a_secret_that_the_cut_goes_through_is_masked_on_both_sides(at: int) -> None:
    secret = S + S
    for place in (TEXT_HEAD - at, None):
        before = "x" * (TEXT_HEAD - 60 - at)
        start = place if place is not None else 9000 - TEXT_TAIL - at
        text = ("a " + before + " ").ljust(start, "-")[:start] + " PASSWORD=" + secret + " "
        text = text.ljust(9000, "-") if place is not None else text + "-" * (9000 - len(text))
        kept = str(mask_detail("command", {"text": render_text(text.encode(), TEXT_HEAD, TEXT_TAIL)})["text"])
        for size in range(6, len(secret)):
            assert secret[:size] not in kept
            assert secret[-size:] not in kept


def test_a_long_call_of_our_own_that_was_cut_is_masked() -> None:
    line = f"export TOKEN='{S} {S}'; mysql -p{S}; curl -H 'Authorization: Bearer {S}' " + "echo x; " * 2000
    argv = ["env", f"TOKEN={S}", "mysql", f"-p{S}", f"--password={S}", *(["it's"] * 2000), f"--token={S}", "x"]
    for words in ([line], ["bash", "-c", line], argv):
        command = render_exec(words, workdir=None, nonce="0a" * 8)
        detail = mask_detail("command", {"text": render_text(command.encode(), TEXT_HEAD, TEXT_TAIL)})
        assert S not in str(detail["text"])


ORDINARY = """\
ls -la
git status
git commit -m "fix token: parser reads the next token"
git commit -m 'Secrets: rotate docs'
git log --oneline --author=ann --since=2.weeks
git clone https://github.com/a/b.git
git clone git@github.com:a/b.git
git push origin HEAD:refs/for/main
git rebase -i HEAD~3
git config user.email ann@example.org
git grep -n 'password' -- src
git checkout -b feature/token-refresh
git diff --stat main...HEAD
pytest -q tests/unit/test_tokens.py::test_secret_is_kept -k "password or token"
python -m pytest -x -p no:cacheprovider
python -c 'import secrets; print(secrets.token_hex(16))'
python manage.py createsuperuser --username ann --email ann@example.org
npm ci && npm run build -- --mode production
npm run test -- --grep "auth token"
npx tsc --noEmit -p tsconfig.json
pnpm -r --filter ./packages/auth test
cargo test --workspace -- --nocapture token
cargo build --release --features "auth,tokens"
go test ./... -run TestPassword -count=1
go build -o bin/auth ./cmd/auth
make -j8 test PASS=1
make install PREFIX=/usr/local DESTDIR=/tmp/x
cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DWITH_TOKEN=OFF
docker build -t app:dev --build-arg VERSION=1.2.3 .
docker run --rm -it -p 8080:80 -v $PWD:/src -w /src node:20 npm test
docker compose up -d --build && docker compose logs -f web
docker login registry.example.org
docker run -e TOKEN -e PASSWORD app
kubectl get secret db -o yaml
kubectl get pods -n auth -l app=token-service
kubectl apply -f secret.yaml
kubectl create secret generic db --from-file=password=./pw.txt
helm upgrade --install app ./chart --set image.tag=1.2.3
ssh -p 2222 ann@host uptime
ssh -i ~/.ssh/id_ed25519 host
scp -P 2222 a.txt host:/tmp/
ssh-keygen -t ed25519 -f key -N '' -C ann@laptop
rsync -az --password-file=/etc/rsync.pass src/ host::mod/
rsync -avp src/ dst/
mysql -u root -p mydb
mysql --host=db --port=3306 -e 'select user, authentication_string from mysql.user'
psql -h db -U ann -d app -c 'select count(*) from api_tokens'
psql postgres://ann@db/app
psql "postgresql:///app?host=/run/pg"
pg_dump -Fc app > app.dump
redis-cli -h r ping
curl -sSf https://example.org/api/v1/tokens?limit=5
curl -X POST -H 'Content-Type: application/json' -d '{"name": "x", "token_count": 5}' https://h/x
curl -u ann https://example.org
curl -H "Authorization: Bearer $TOKEN" https://example.org
curl -H "Authorization: Bearer $(cat token)" https://example.org
curl -o out -L http://localhost:8080/healthz
curl 'https://h/search?q=token:abc&page=2'
wget -qO- https://example.org/install.sh
export PATH=/usr/local/bin:$PATH EDITOR=vim
export TOKEN=$(cat /run/token)
export TOKEN="$OTHER_TOKEN"
export API_KEY=${API_KEY}
PASSWORD_FILE=/run/secrets/pw ./start
SECRET_NAME=db-creds ./deploy
PWD=/tmp OLDPWD=/x ls
MAX_TOKENS=4096 python run.py --max-tokens 1000 --token-limit 5
TOKENIZERS_PARALLELISM=false python train.py --num-tokens 1000000
AUTH=true NO_AUTH=1 ./server --no-auth --auth-mode none
./server --token-file /etc/t --key server.key --cert server.crt
./cli --pass-through --password-stdin < pw
./run --public-key "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgtFZMiRPxQw3kRKk6wZUyHTKuRRGjDqDcWQPKfCkTZ"
openssl x509 -in cert.pem -noout -text
openssl rand -base64 32
openssl enc -d -pass file:pw -in x
grep -rn "password" src | head -20
grep -rnE 'api[_-]?key' --include='*.py' .
rg 'token' -g '!*.lock'
sed -i 's/token/tokens/g' docs/*.md
sed -n '1,80p' src/auth/password.py
awk -F: '{print $1}' /etc/passwd
awk '{ sum += $1 } END { print sum }' tokens.txt
find . -name '*secret*' -not -path './node_modules/*'
cat /etc/passwd | cut -d: -f1
cat <<'E' > notes.txt\ntodo: tokens\nE
vim src/token.ts
tail -f /var/log/auth.log
journalctl -u ssh --since '1 hour ago'
systemctl restart token-service
passwd ann
sudo -S true
sudo apt-get install -y pass
echo "password must be long" | tee README
echo hello | grep -c h
echo $TOKEN | docker login --password-stdin
if [ -z "$TOKEN" ]; then echo "no token"; fi
for t in a b; do echo "token=$t"; done
test "$PASSWORD" = "" && exit 1
terraform plan -var-file=prod.tfvars
terraform apply -var region=eu
aws s3 cp s3://bucket/key ./key
aws secretsmanager list-secrets
aws configure set region eu-central-1
gh pr create --title "Token refresh" --body "password: see wiki"
gh auth status
gh api /repos/a/b/actions/secrets
gcloud auth print-access-token
az account get-access-token
vault kv get secret/app
ansible-playbook site.yml --ask-vault-pass
ansible-vault view secrets.yml
node -e "console.log(process.env.TOKEN)"
ruby -e 'puts ENV["SECRET_KEY_BASE"]'
java -jar app.jar --spring.profiles.active=dev
gradle test --tests '*TokenTest'
mvn -q -DskipTests package
tar czf a.tgz -C src .
7z x a.7z -oout
unzip -p a.zip f
zip -r a.zip dir
du -sh * | sort -h
ps aux | grep token
kill -9 1234
crontab -l
tmux new -s token
code .
jq -r '.token' config.json
jq '.password | length' x.json
yq '.auth' x.yml
xargs -n1 echo < tokens
tr -d '\\n' < key.pem
base64 -d < x
sha256sum dist/*
uname -a
env | sort
printenv HOME
history 20
which python3
pip install 'secret-service>=1'
uv run --with pytest pytest
sqlite3 app.db 'select token_hash from api_tokens limit 1'
runcode exec -- make test
eslint --rule 'no-secrets/no-secrets: error' src
chmod 600 ~/.ssh/id_rsa
head -c 32 /dev/urandom | base64
date -u +%Y-%m-%dT%H:%M:%SZ
nc -zv host 5432
ping -c 1 host
dig +short example.org
""".splitlines()


@pytest.mark.parametrize("text", ORDINARY)
def test_nothing_ordinary_is_masked(text: str) -> None:
    text = text.replace("\\n", "\n")
    assert mask_text(text) == (text, 0)
    wrapped = mask_detail("command", {"text": render_exec([text], workdir=None, nonce="0a" * 8), "text_sha256": "ab"})
    assert "masked" not in wrapped
    assert wrapped["text_sha256"] == "ab"


def test_what_was_asked_for_is_shown_not_our_wrapper() -> None:
    def shown(words: list[str]) -> object:
        return mask_detail("command", {"text": render_exec(words, workdir="/w", nonce="0a" * 8)})["text"]

    assert shown(["make test"]) == "runcode exec -- 'make test'"
    assert shown(["grep", "-r", "a b", "it's"]) == "runcode exec -- grep -r 'a b' 'it'\\''s'"
    assert shown(["echo", "a\\b"]) == "runcode exec -- echo 'a'\\\\'b'"
    # What only looks like ours is somebody's own command.
    detail = mask_detail("command", {"text": "runcode exec -- x", "ours": 1, "masked": 7})
    assert detail == {"text": "runcode exec -- x"}


def test_only_commands_are_looked_into() -> None:
    detail = {"target": "db.example.org:5432", "form": "direct-tcpip"}
    assert mask_detail("forward", detail) == detail


# ---------------------------------------------------------------- work grows with the text, and no faster


class Counted:
    """How much of a text the patterns were given, as a measure of work that no clock disturbs."""

    def __init__(self) -> None:
        self.pieces = 0


HOSTILE: list[Callable[[int], str]] = [
    lambda n: "'" * n,
    lambda n: '"' * n,
    lambda n: "'\"" * (n // 2),
    lambda n: "\"'" * (n // 2),
    lambda n: "\\" * n,
    lambda n: "\\'" * (n // 2),
    lambda n: "=" * n,
    lambda n: "password=" * (n // 9),
    lambda n: "--password " * (n // 11),
    lambda n: "a:" * (n // 2),
    lambda n: "://" + "a" * n,
    lambda n: "://a:" * (n // 5),
    lambda n: "://" * (n // 3),
    lambda n: "eyJ" + "a" * n,
    lambda n: "eyJ" * (n // 3),
    lambda n: "eyJaaaaaaaa." * (n // 12),
    lambda n: "-----BEGIN PRIVATE KEY-----" * (n // 27),
    lambda n: "-----BEGIN " * (n // 11),
    lambda n: " …[cut: 1 bytes in all]… " * (n // 24),
    lambda n: "a" * n + " …[cut: 1 bytes in all]… " + "a" * n,
    lambda n: "Authorization: " * (n // 15),
    lambda n: "authorization:" + " " * n,
    lambda n: "bearer " * (n // 7),
    lambda n: '"' + "secret" * (n // 6),
    lambda n: "?" + "token" * (n // 5),
    lambda n: "?a" * (n // 2),
    lambda n: "\n" + " " * n,
    lambda n: "\npassword:" * (n // 10),
    lambda n: "x-" + "key" * (n // 3),
    lambda n: "x-key" * (n // 5),
    lambda n: "$(" * (n // 2),
    lambda n: "A_B" * (n // 3),
    lambda n: "sk-" * (n // 3),
    lambda n: "ghp_" * (n // 4),
    lambda n: "mysql -p" * (n // 8),
    lambda n: "curl -u a:b " * (n // 12),
    lambda n: '\\"password\\"' * (n // 12),
    lambda n: "".join(random.Random(n).choice(string.printable) for _ in range(n)),
    lambda n: "".join(random.Random(n).choice("'\"\\ =:$-pa\n") for _ in range(n)),
]


@pytest.mark.parametrize("make", HOSTILE, ids=range(len(HOSTILE)))
def test_work_grows_with_the_text_and_no_faster(make: Callable[[int], str]) -> None:
    """By instructions' nearest kin that is exact: the best of several timings of one process, at a scale of 16."""
    import time

    def cost(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time_ns()
            mask_text(text)
            best = min(best, time.process_time_ns() - began)
        return best

    small, large = cost(make(1_000)), cost(make(16_000))
    # Quadratic work would be 256 times as much; a floor keeps the clock's own grain out of it.
    assert large <= 64 * max(small, 200_000)


@pytest.mark.parametrize("seed", range(300))
def test_any_text_is_masked_without_failing_and_but_for_secrets_kept(seed: int) -> None:
    chooser = random.Random(seed)
    pieces = [*"'\"\\ =:$-|;&()<>\n\t…", "password=", "--token ", "mysql -p", "a", "xyz", "://", "@", "curl -u a:b"]
    text = "".join(chooser.choice(pieces) for _ in range(chooser.randrange(120)))
    masked, count = mask_text(text)
    assert masked.count("[masked]") == count
    # All that is left was there, in this order.
    rest = text
    for part in masked.split("[masked]"):
        assert part in rest
        rest = rest[rest.index(part) + len(part) :]
    mask_detail("command", {"text": text})
    mask_detail("command", {"text": render_exec([text], workdir=None, nonce="0a" * 8)})


# ---------------------------------------------------------------- the operator's patterns


def test_an_operators_pattern_masks() -> None:
    patterns = masking_rules.parse_patterns("# ours\nacme_[A-Za-z0-9]{20,40}\n\nemp-\\d{6}\n")
    text, count = mask_text(f"run --id emp-123456 acme_{S}", patterns)
    assert (text, count) == ("run --id [masked] [masked]", 2)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "abc(", "abc|d", "a.*b", "[a-z]+", "ab", "abc[", "abc{5,2}", "abcd{2000}", "abc\\b", "x" * 300, "abc(?i)", "abc++", "a*a*a*a*b", "^abc", "é" * 5],
)  # fmt: skip
def test_what_could_be_slow_or_is_no_pattern_is_refused_with_its_line(pattern: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        masking_rules.parse_patterns(f"fine_[a-z]{{3}}\n{pattern}\n")
    assert caught.value.code == "bad_request"
    assert "line 2" in caught.value.message


def test_there_is_a_bound_to_how_many() -> None:
    with pytest.raises(RunCodeError):
        masking_rules.parse_patterns("abcd\n" * (masking_rules.PATTERNS_MAX + 1))


def test_an_operators_pattern_cannot_be_slow() -> None:
    import time

    (pattern,) = masking_rules.parse_patterns("aaa[a-z]*[a-z]*[a-z]*[a-z]*!")

    def cost(size: int) -> int:
        began = time.process_time_ns()
        mask_text("a" * size, [pattern])
        return time.process_time_ns() - began

    assert min(cost(40_000) for _ in range(3)) <= 40 * max(min(cost(4_000) for _ in range(3)), 200_000)


def test_masking_has_one_word() -> None:
    assert masking.MASK == "[masked]"
