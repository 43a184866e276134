#!/usr/bin/env bash
# Looks the locked packages of both images up in the database of known vulnerabilities; needs pip-audit and the internet.
# Where the database cannot be reached pip-audit finds nothing and is content. So it is first asked about a version that
# everybody knows to be vulnerable: exit code 2 says that nothing was learnt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

canary=$(mktemp)
trap 'rm -f "$canary"' EXIT
echo 'jinja2==2.10' > "$canary"
if pip-audit --progress-spinner off --disable-pip --no-deps -r "$canary" > /dev/null 2>&1; then
    echo 'audit: the database of vulnerabilities cannot be reached from here; nothing was checked' >&2
    exit 2
fi
for target in cpu cuda; do
    # A local version (2.13.0+cpu) is not in the database, the release that it was built from is.
    sed 's/+cpu / /' "docker/locks/$target.txt" > "$canary"
    pip-audit --progress-spinner off --disable-pip --require-hashes -r "$canary"
done
