#!/usr/bin/env bash
# The changelog's part of "make check", in the repository that it is called in: every note is a
# title and a text, and a change of Go code brings one. What counts as the change is all since
# origin/main, or on main itself since the last tag.
set -euo pipefail
notes=docs/changes/unreleased
rc=0

say() {
	echo "$1"
	rc=1
}

shopt -s nullglob
for f in "$notes"/*; do
	case $f in
	*.md) ;;
	*) say "$f: a note is called NAME.md" && continue ;;
	esac
	{
		IFS= read -r title || true
		IFS= read -r blank || true
		text=$(cat)
	} <"$f"
	[[ $title =~ ^'# '[^[:space:]] ]] || say "$f: its first line is not \"# TITLE\""
	[ -z "$blank" ] || say "$f: no blank line after the title"
	[[ $text =~ [^[:space:]] ]] || say "$f: no text: say the problem in the past and the behaviour in the present"
done

base=$(git merge-base origin/main HEAD 2>/dev/null || true)
if [ -z "$base" ] || [ "$base" = "$(git rev-parse HEAD)" ]; then
	base=$(git describe --tags --abbrev=0 2>/dev/null || true)
fi
if [ -z "$base" ]; then
	echo "no origin/main that HEAD is ahead of, and no tag: whether the change brings a note is NOT CHECKED"
	exit $rc
fi
code=$(git diff --name-only "$base" -- '*.go' ':!*_test.go' ':!test/')
note=$(git diff --name-only --diff-filter=d "$base" -- "$notes" && git ls-files -o --exclude-standard -- "$notes")
if [ -n "$code" ] && [ -z "$note" ]; then
	say "Go code has changed since $base, and nothing in $notes: a change brings its note"
	head -n 3 <<<"$code"
fi
exit $rc
