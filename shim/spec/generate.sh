#!/usr/bin/env bash
# Generates spec_easyjson.go into the file named, with the easyjson named. Only the readers are wanted; the
# package that the file would import for the names of its interfaces brings net/http.
set -euo pipefail
easyjson=$1 out=$(realpath "$2")
cd "$(dirname "$0")"
"$easyjson" -no_std_marshalers -output_filename "$out" spec.go
sed -i -e '/^\teasyjson "github.com\/mailru\/easyjson"$/d' -e '/^\t_ easyjson\.Marshaler$/d' "$out"
