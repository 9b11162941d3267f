#!/bin/sh
# The MLflow pages for the runs of this directory, at http://127.0.0.1:5000 (PORT=… for another port).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
home=${PUMA_HOME:-$here/.puma}
mkdir -p "$home"
PATH="$here/.venv/bin:$PATH"
cd "$home" # not the repository's root: MLflow writes what it has no place for into the current directory
exec mlflow server --host 127.0.0.1 --port "${PORT:-5000}" --workers 1 \
  --backend-store-uri "sqlite:///$home/mlflow.db" --artifacts-destination "$home/mlartifacts"
