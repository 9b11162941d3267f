#!/bin/sh
# A tracking server for a team. Runs point to it with tracking_uri=http://HOST:5000 or MLFLOW_TRACKING_URI.
#   BACKEND    database, for example postgresql://user:password@host/mlflow; an SQLite file serves a small team
#   ARTIFACTS  where pictures and reports go, for example s3://bucket/mlflow; clients need no key to it
#   HOSTS      names under which clients reach the server. MLflow answers 403 to all others but localhost and private
#              addresses, and compares the port too, so name both forms: mlflow.example.org,mlflow.example.org:5000
set -eu
: "${BACKEND:=sqlite:///mlflow.db}" "${ARTIFACTS:?set ARTIFACTS, for example s3://bucket/mlflow}"
set -- --host 0.0.0.0 --port "${PORT:-5000}" --backend-store-uri "$BACKEND" --artifacts-destination "$ARTIFACTS"
[ -z "${HOSTS:-}" ] || set -- "$@" --allowed-hosts "$HOSTS"
exec mlflow server "$@"
