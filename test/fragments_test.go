package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFragments holds repositories of one commit more than origin/main to the changelog's rules.
func TestFragments(t *testing.T) {
	script, err := filepath.Abs("fragments.sh")
	if err != nil {
		t.Fatal(err)
	}
	const note, good = "docs/changes/unreleased/1.md", "# It works\n\nIt did not. Now it does.\n"
	for _, c := range []struct {
		name          string
		before, after map[string]string // path to content
		tag, main     bool              // what of before can be known
		want          string            // what it says; "": it passes in silence
		passes        bool
	}{
		{"a change with its note", nil, map[string]string{"a.go": "package a", note: good}, false, true, "", true},
		{"a change without", nil, map[string]string{"services/a.go": "package a"}, false, true, "services/a.go", false},
		{"a change without, since a tag", nil, map[string]string{"a.go": "package a"}, true, false, "a.go", false},
		{"somebody else's note", map[string]string{note: good}, map[string]string{"a.go": "package a"}, false, true, "brings its note", false},
		{"a note taken out", map[string]string{note: good}, map[string]string{"a.go": "package a", note: ""}, false, true, "brings its note", false},
		{"tests only", nil, map[string]string{"a_test.go": "package a", "test/x/b.go": "package b"}, false, true, "", true},
		{"nothing to compare with", nil, map[string]string{"a.go": "package a"}, false, false, "NOT CHECKED", true},
		{"no title", nil, map[string]string{note: "It works\n\ntext\n"}, false, true, note + ": its first line", false},
		{"no blank line", nil, map[string]string{note: "# It works\ntext\ntext\n"}, false, true, note + ": no blank line", false},
		{"no text", nil, map[string]string{note: "# It works\n\n \n"}, false, true, note + ": no text", false},
		{"no note by its name", nil, map[string]string{"docs/changes/unreleased/1.txt": good}, false, true, "called NAME.md", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			run := func(name string, args ...string) (string, error) {
				cmd := exec.Command(name, args...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_DIR="+dir+"/.git",
					"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a")
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			git := func(args ...string) {
				t.Helper()
				if out, err := run("git", args...); err != nil {
					t.Fatalf("git %v: %v\n%s", args, err, out)
				}
			}
			commit := func(files map[string]string) {
				t.Helper()
				for path, content := range files {
					path = filepath.Join(dir, path)
					if content == "" {
						_ = os.Remove(path)
						continue
					}
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				git("add", "-A")
				git("commit", "-q", "--allow-empty", "-m", "x")
			}
			git("init", "-q")
			commit(c.before)
			if c.tag {
				git("tag", "v1")
			}
			if c.main {
				git("update-ref", "refs/remotes/origin/main", "HEAD")
			}
			commit(c.after)
			out, err := run(script)
			if (err == nil) != c.passes || c.want == "" && out != "" || !strings.Contains(out, c.want) {
				t.Errorf("%v, says %q; want it to pass: %v, to say %q", err, out, c.passes, c.want)
			}
		})
	}
}
