#!/usr/bin/env bash
# "make check": everything that can be judged without running the product.
# Every part runs, even after one has failed: who mends one thing wants to know of the others.
set -uo pipefail
cd "$(dirname "$0")/.."
tools=$1 buf=$2 gofumpt=$3 golangci=$4 easyjson=$5
failed=()

part() {
	local name=$1
	shift
	echo "check: $name"
	"$@" || failed+=("$name")
}

formatted() {
	local out
	out=$(git ls-files -co --exclude-standard '*.go' | grep -vE '(\.pb|_easyjson)\.go$' | xargs "$gofumpt" -l)
	[ -z "$out" ] || {
		printf 'not formatted (make format):\n%s\n' "$out"
		return 1
	}
}

generated() {
	local dir f rc=0
	dir=$(mktemp -d)
	if PATH="$tools:$PATH" "$buf" generate -o "$dir"; then
		while IFS= read -r f; do
			cmp -s "$f" "$dir/$f" || {
				echo "$f is not what the protos say (make proto)"
				rc=1
			}
		done < <(git ls-files 'proto/*.pb.go')
	else
		rc=1
	fi
	# easyjson can write into the package itself only; what was there comes back, whatever it wrote.
	f=shim/spec/spec_easyjson.go
	cp -p "$f" "$dir/was.go"
	shim/spec/generate.sh "$easyjson" "$f" && cmp -s "$f" "$dir/was.go" || {
		echo "$f is not what the specification says (make generate)"
		rc=1
	}
	cp -p "$dir/was.go" "$f"
	rm -rf "$dir"
	return $rc
}

# The promises of the last release, as a descriptor set. Only a release renews it (buf build -o
# proto/released.txtpb).
unbroken() { "$buf" breaking --against proto/released.txtpb; }

tidy() {
	go mod tidy -diff >/dev/null || {
		echo "go.mod and go.sum are not tidy (go mod tidy)"
		return 1
	}
}

vet() { go vet ./... && go vet -tags fault ./... && go vet -tags bench ./... && go vet -tags insecure ./... && GOARCH=arm64 CGO_ENABLED=0 go vet ./...; }

part "format" formatted
part "go.mod" tidy
part "buf lint" "$buf" lint
part "buf format" "$buf" format -d --exit-code
part "buf breaking" unbroken
part "generated code" generated
part "changelog" test/fragments.sh
part "vet (amd64, arm64, with failpoints, with measurements, without guards)" vet
part "golangci-lint" "$golangci" run ./...
part "laws" go test -count=1 ./test

if [ "${#failed[@]}" -gt 0 ]; then
	printf 'check: FAILED: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "check: all well"
