#!/usr/bin/env bash
# The shipped domains, by the public command, each on a folder of drawn pictures and on the shipped base.
#
#   WORK=work/tiny bash runs/tiny-domains.sh            # faces, cats and art: runs/tiny-KIND.json
#   WORK=work/tiny bash runs/tiny-domains.sh KIND       # one of them
#
# Faces had 8,000 pictures, cats and art 10,000. On one core of a server with bfloat16, beside other work, art took 4.5
# minutes, faces, with twice the pictures in each step, 10. Drawing 10,000 pictures took 7 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
# glibc keeps freed memory, in large pages, instead of asking the kernel for it again and again (benchmarks/allocator.py).
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=268435456
WORK=${WORK:-work/tiny}
BIN=${BIN:-.venv/bin}
[ $# -gt 0 ] || set -- face cat art

for kind; do
  if [ "$kind" = face ]; then pictures=8000; else pictures=10000; fi
  if [ "$kind" = art ]; then captions=--captions; else captions=; fi  # whom a style was shown on has words of its own
  "$BIN/python" -m e4t.tiny.album "$WORK/$kind" train "$pictures" --kind "$kind" $captions
  "$BIN/e4t" pretrain "$WORK/$kind" --domain "$kind" --base tiny --config "runs/tiny-$kind.json" \
    --output "$WORK/tiny-$kind"
  rm -rf "src/e4t/tiny/weights/tiny-$kind"
  cp -r "$WORK/tiny-$kind" "src/e4t/tiny/weights/tiny-$kind"
done
