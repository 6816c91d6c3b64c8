#!/bin/sh
# Installs what the tests of this folder need: Chromium and Node (from Debian's packages, where they are missing),
# LiteRT.js into node_modules, and the viewers into .venv-viewers, where their dependencies meet no others.
# Usage: setup.sh [PYTHON]
set -eu
python=$(command -v "${1:-python3}")
cd "$(dirname "$0")"

missing=""
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="chromium"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "Please install $missing, then run this again (as root on Debian, it does so)." >&2
    exit 1
  fi
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
fi

npm install --prefix . --silent --no-save --no-package-lock --no-audit --no-fund @litertjs/core@2.5.3 @litertjs/wasm-utils@2.5.3

# Netron refuses to work half a year after its release: the newest one.
viewers=../../../.venv-viewers
[ -x "$viewers/bin/python" ] || "$python" -m venv "$viewers"
"$viewers/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade netron ai-edge-model-explorer-adapter==0.2.1
echo "Ready: pytest -m slow tests/tflite_export/web"
