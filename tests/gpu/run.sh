#!/usr/bin/env bash
# All that only a GPU can show, in under eight minutes: the tests of this directory, then `python -m tests.bench gpu`.
#   tests/gpu/run.sh pack   where packages can be had: build/gpu/site.tar.xz, 55 MB, for a machine that reaches none
#   tests/gpu/run.sh        on the machine, in a copy of this repository; what it measured goes to $OUT (build/gpu/out)
#   tests/gpu/run.sh dry    all of it on a machine without a GPU, where the tests are skipped and nothing is measured
# The machine has python3 with a torch for its GPU and the usual scientific packages. What else Puma needs is that of a
# .venv, if there is one, or comes out of the pack, or is installed beside them, in build/gpu/venv.
set -uo pipefail
cd "$(dirname "$0")/../.."

HOME_HERE=$PWD/build/gpu
OUT=${OUT:-$HOME_HERE/out}
TEST_SECONDS=${TEST_SECONDS:-300} BENCH_SECONDS=${BENCH_SECONDS:-130}
FOR=${FOR_PYTHON:-3.12} # the machine's Python
# Puma's dependencies and theirs, less what comes with torch and pandas; deepspeed has no wheel and is copied.
PACKAGES=(
  aiohttp-cors alembic annotated-types blinker boto3 botocore cachetools cffi colorful cryptography databricks-sdk
  docker fastapi flask flask-cors gitdb gitpython google-api-core google-auth googleapis-common-protos graphene
  graphql-core graphql-relay gunicorn hjson httpcore2 httpx2 huggingface-hub importlib-metadata ir-measures
  itsdangerous jmespath jsonschema jsonschema-specifications mako mlflow mlflow-skinny mlflow-tracing opencensus
  opencensus-context opentelemetry-api opentelemetry-exporter-prometheus opentelemetry-proto opentelemetry-sdk
  opentelemetry-semantic-conventions peft prettytable proto-plus pyasn1 pyasn1-modules pycparser pydantic
  pydantic-core python-dotenv pytrec-eval-terrier ray referencing rpds-py ruamel.yaml s3transfer sentence-transformers
  smart-open smmap sqlalchemy sqlparse starlette tensorboardx transformers truststore typing-inspection uvicorn
  wcwidth
)
# What a run does not come to, and what is half of the size.
UNUSED=(bin mlflow/server/js ray/dashboard/client ray/jars ray/llm ray/rllib)

pack() {
  local site=$HOME_HERE/site tags=()
  for tag in 2_28 2_27 2_17 2_5 2_12; do tags+=(--platform "manylinux_${tag}_x86_64"); done
  tags+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform linux_x86_64)
  rm -rf "$site"
  .venv/bin/python -m pip install --quiet --no-deps --no-compile --only-binary=:all: --implementation cp \
    --python-version "$FOR" "${tags[@]}" --constraint constraints.txt --target "$site" "${PACKAGES[@]}" || return 1
  cp -r .venv/lib/python3*/site-packages/deepspeed .venv/lib/python3*/site-packages/deepspeed-*.dist-info "$site"
  (cd "$site" && rm -rf "${UNUSED[@]}" && find . -name __pycache__ -prune -exec rm -rf {} +)
  find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name 's3' ! -name 's[st]*' -exec rm -rf {} +
  tar --create --directory "$site" . | xz -6 --threads=0 > "$HOME_HERE/site.tar.xz"
  du -h "$HOME_HERE/site.tar.xz"
}

prepare() {
  if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
    export PYTHONPATH=$PWD
  elif [ -f "$HOME_HERE/site.tar.xz" ]; then
    mkdir -p "$HOME_HERE/site"
    tar --extract --xz --directory "$HOME_HERE/site" --file "$HOME_HERE/site.tar.xz" || return 1
    python=python3
    export PYTHONPATH=$PWD:$HOME_HERE/site
  else
    python3 -m venv --system-site-packages "$HOME_HERE/venv" || return 1
    python=$HOME_HERE/venv/bin/python
    export PYTHONPATH=$PWD
    # Without the pinned torch, whose build may be for CPUs: the machine's stays.
    grep -v '^torch' constraints.txt > "$HOME_HERE/constraints.txt"
    "$python" -m pip install --quiet --constraint "$HOME_HERE/constraints.txt" "${PACKAGES[@]}" deepspeed || return 1
  fi
}

measure() {
  {
    date -u
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || echo "no GPU"
    "$python" -c 'from importlib.metadata import version
for name in ("torch", "transformers", "deepspeed", "ray"): print(name, version(name))'
  } 2>&1 | tee "$OUT/machine.txt"
  timeout "$TEST_SECONDS" "$python" -m pytest tests/gpu -p no:cacheprovider --durations=0 --junitxml="$OUT/tests.xml" \
    2>&1 | tee "$OUT/tests.txt"
  local tested=$?
  timeout "$BENCH_SECONDS" "$python" -m tests.bench gpu --json 2>&1 | tee "$OUT/gpu.txt"
  local benched=$?
  echo "tests ended with $tested, the benchmark with $benched, after $SECONDS s; see $OUT"
  [ "$tested" = 0 ] && [ "$benched" = 0 ]
}

case ${1:-run} in
  pack) mkdir -p "$HOME_HERE" && pack ;;
  run | dry)
    export PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
    mkdir -p "$OUT" "$HOME_HERE"
    if [ "${1:-run}" = dry ]; then export CUDA_VISIBLE_DEVICES=; fi
    if ! prepare; then
      echo "the packages could not be made ready; make build/gpu/site.tar.xz by tests/gpu/run.sh pack" >&2
      exit 1
    fi
    if [ "${1:-run}" = dry ]; then
      measure
      grep -q skipped "$OUT/tests.txt" && grep -q "needs an NVIDIA GPU" "$OUT/gpu.txt"
    else
      measure
    fi
    ;;
  *)
    echo "tests/gpu/run.sh [pack|run|dry]" >&2
    exit 2
    ;;
esac
