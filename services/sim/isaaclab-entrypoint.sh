#!/bin/sh
# The image's compiled kernels are read-only: links to them in a place that can be written leave room for further ones.
set -eu
mkdir -p "$WARP_CACHE_PATH"
cp -rsn /opt/warp/. "$WARP_CACHE_PATH"
exec python -m sim2or_sim "$@"
