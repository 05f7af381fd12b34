#!/usr/bin/env bash
# Builds and runs the image without a Docker engine, and checks the properties that docs/operations.md states:
#
#   docker/verify.sh [ARGUMENTS OF buildah build]
#
# Requires root on Debian, with podman, buildah, debootstrap and curl. The base image is not pulled, but built by
# debootstrap (from MIRROR, if set) and imported under the name in FROM. PYTHON is a folder with a Python installation
# to copy into /usr/local; the default is Debian's Python. The script uses 10 GB in a temporary folder in FOLDER
# (/var/tmp) and listens on PORT (8000). Pass pip's configuration with --secret id=pip,src=FILE.
# shellcheck disable=SC2016  # the quoted text is expanded by another shell
set -euo pipefail
cd "$(dirname "$0")/.."
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 # podman runs no container here

base=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
suite=${base##*-}
image=localhost/greenroom:verify
port=${PORT:-8000}
url=http://127.0.0.1:$port
folder=$(mktemp --directory --tmpdir="${FOLDER:-/var/tmp}")
storage=(--storage-driver vfs --root "$folder/storage" --runroot "$folder/run")
limits=(--ulimit nofile=20000:20000 --ulimit nproc=96365:96365) # within this user's limits
container=
namespaces=
server=

say() { echo "$(date +%T) $*"; }

fail() {
    say "FAILED: $*" >&2
    exit 1
}

clean_up() {
    [[ -z $namespaces ]] || pkill -KILL --parent "$namespaces" || true # killing process 1 ends the others
    [[ -z $container ]] || buildah "${storage[@]}" rm "$container" >/dev/null || true
    umount "$folder"/base/{proc,sys} 2>/dev/null || true # left mounted by an interrupted debootstrap
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT

make_base() {
    say "base: $base, of Debian $suite"
    local packages=ca-certificates,python3,python3-venv,python-is-python3
    [[ -z ${PYTHON:-} ]] || packages=ca-certificates,libbz2-1.0,libffi8,liblzma5,libsqlite3-0,libssl3t64,zlib1g
    debootstrap --variant=minbase --include="$packages" \
        "$suite" "$folder/base" ${MIRROR:+"$MIRROR"} >"$folder/debootstrap.log" \
        || fail "debootstrap: $(tail -3 "$folder/debootstrap.log")"
    if [[ -n ${PYTHON:-} ]]; then
        tar --create --directory "$PYTHON" --exclude=site-packages --exclude=test --exclude='*.a' . \
            | tar --extract --directory "$folder/base/usr/local"
        chroot "$folder/base" ldconfig
    fi
    tar --create --directory "$folder/base" . | podman "${storage[@]}" import --quiet - "$base" >/dev/null
    rm -rf "$folder/base"
}

build() {
    say "build"
    buildah "${storage[@]}" build --isolation chroot --pull=never --network host --format docker \
        "${limits[@]}" --file docker/Dockerfile --tag "$image" "$@" . >"$folder/build.log" 2>&1 \
        || fail "buildah: $(tail -20 "$folder/build.log")"
    say "size: $(config '{{.Size}}' | numfmt --to=iec)"
    # Only the stage that the CUDA variant adds, without a second torch.
    buildah "${storage[@]}" build --isolation chroot --pull=never --format docker "${limits[@]}" \
        --file docker/Dockerfile --target cuda --tag "$image-cuda" . >>"$folder/build.log" 2>&1 \
        || fail "buildah, CUDA: $(tail -20 "$folder/build.log")"
}

# Prints a template of the configuration of the image, or of another image.
config() { podman "${storage[@]}" image inspect --format "$1" "${2:-$image}"; }

expect() { [[ $2 == "$3" ]] || fail "$1 is $2, not $3"; }

check_config() {
    expect "the user" "$(config '{{.Config.User}}')" 1001:1001
    expect "the entry point" "$(config '{{json .Config.Entrypoint}} {{json .Config.Cmd}}')" '["greenroom"] ["serve"]'
    expect "the health check" "$(config '{{json .HealthCheck.Test}}')" '["CMD","python","/opt/greenroom/healthcheck.py"]'
    expect "the volumes" "$(config '{{json .Config.Volumes}}')" '{"/cache":{},"/models":{}}'
    config '{{json .Config.Env}}' "$image-cuda" | grep --quiet '"NVIDIA_VISIBLE_DEVICES=all"' \
        || fail "the CUDA variant does not ask for GPUs"
    ! config '{{json .Config.Env}}' | grep --quiet NVIDIA || fail "the CPU variant asks for GPUs"
}

# Runs a command in the image, as its user, after any --volume FOLDER:PATH.
inside() {
    local arguments=()
    while [[ $1 == --volume ]]; do
        arguments+=("$1" "$2")
        shift 2
    done
    buildah "${storage[@]}" run --isolation chroot --network host "${arguments[@]}" "$container" -- "$@"
}

check_inside() {
    container=$(buildah "${storage[@]}" from --pull=never "${limits[@]}" "$image")
    expect "the user" "$(inside id -u):$(inside id -g)" 1001:1001
    expect "the list of build tools in the image" "$(inside sh -c 'command -v curl gcc pip || true')" ""
    expect "the list of writable folders" \
        "$(inside sh -c 'for i in / /opt/greenroom /cache /models; do test ! -w $i || echo $i; done' | xargs)" \
        "/cache /models"
    install --directory --owner 1001 --group 1001 "$folder/models"
    inside --volume "$folder/models:/models" \
        sh -c 'greenroom pack /opt/greenroom/lib/python3*/site-packages/server/demo/model packed' \
        >"$folder/pack.log" 2>&1 || fail "greenroom pack: $(cat "$folder/pack.log")"
    expect "the owner of the packed model" "$(stat --format %u:%g "$folder/models/packed/manifest.json")" 1001:1001
    inside greenroom doctor --port 0 | grep --quiet "^ok *kernels" || fail "the native kernels cannot be loaded"
    say "inside: $(inside greenroom --version), $(inside python -c 'import torch; print("torch", torch.__version__)')"
}

# Serves the packed model with a read-only root, as process 1 of new namespaces and as the image's user. Sets
# `namespaces` and `server`.
start() {
    local root environment
    ! curl --silent --output "$folder/ready" "$url/ready" || fail "another server listens at $url; set another PORT"
    root=$(buildah "${storage[@]}" mount "$container")
    mapfile -t environment < <(config '{{range .Config.Env}}{{println .}}{{end}}' | grep .)
    unshare --mount --pid --fork bash -euc '
        root=$1 models=$2
        shift 2
        mount --bind "$root" "$root"
        mount --types proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        for i in cache tmp; do mount --types tmpfs --options uid=1001,gid=1001 tmpfs "$root/$i"; done
        mount --bind "$models" "$root/models"
        mount --options remount,bind,ro "$root"
        exec chroot --userspec=1001:1001 "$root" env --chdir=/models --ignore-environment "$@"
    ' start "$root" "$folder/models" "${environment[@]}" GREENROOM_PORT="$port" greenroom serve packed \
        >"$folder/out" 2>"$folder/err" &
    namespaces=$!
    until curl --silent --fail --output "$folder/ready" "$url/ready"; do
        kill -0 "$namespaces" 2>/dev/null || fail "the server ended: $(cat "$folder/err")"
        sleep 0.2
    done
    server=$(pgrep --parent "$namespaces")
    expect "the process of the server" "$(grep NSpid "/proc/$server/status" | awk '{print $NF}')" 1
    expect "its user" "$(awk '/^Uid/ {print $2}' "/proc/$server/status")" 1001
    grep --quiet " from packed$" "$folder/err" || fail "it does not serve the packed model: $(cat "$folder/err")"
    say "ready: $(cat "$folder/out")"
}

check_serving() {
    local health=(python /opt/greenroom/healthcheck.py)
    inside env GREENROOM_PORT="$port" "${health[@]}" || fail "the health check fails"
    ! inside env GREENROOM_PORT=9 "${health[@]}" 2>/dev/null || fail "the health check succeeds without a server"
    [[ $(nsenter --target "$server" --mount --root touch /opt/greenroom/x 2>&1) == *"Read-only file system" ]] \
        || fail "the root file system is writable"
    complete '{"prompt": "Once upon a time", "max_tokens": 8}' | grep --quiet '"finish_reason":"length"' \
        || fail "no completion"
    get metrics | grep --quiet '^greenroom_expert_loaded_bytes_total.* [1-9]' || fail "no expert was read"
    chat | grep --quiet '"role":"assistant"' || fail "no chat"
    get "" | grep --quiet "<html" || fail "no dashboard"
    get metrics | grep --quiet ^greenroom_num_requests_waiting || fail "no metrics"
}

complete() { post completions "$1"; }

chat() { post chat/completions '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'; }

get() { curl --silent --fail "$url/$1"; }

post() { curl --silent --no-buffer --header 'Content-Type: application/json' --data "$2" "$url/v1/$1"; }

# A stream that begins before SIGTERM must complete, while new requests are refused.
check_draining() {
    local status=0
    : >"$folder/stream"
    complete '{"prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": true, "stream": true}' >"$folder/stream" &
    local stream=$!
    until grep --quiet '^data' "$folder/stream"; do sleep 0.02; done
    kill -TERM "$server"
    local ready
    ready=$(curl --silent --write-out ' %{http_code}' "$url/ready" || true)
    expect "/ready after SIGTERM" "$ready" '{"status":"draining"} 503'
    wait "$stream" || fail "the stream was interrupted"
    grep --quiet '"finish_reason":"length"' "$folder/stream" || fail "the stream ended early"
    tail -2 "$folder/stream" | grep --quiet --line-regexp 'data: \[DONE\]' || fail "the stream has no [DONE]"
    wait "$namespaces" || status=$?
    namespaces=
    expect "the exit status after SIGTERM" "$status" 0
}

make_base
build "$@"
check_config
check_inside
start
check_serving
check_draining
say "all checks passed"
