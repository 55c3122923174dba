package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestNotThereYet: what docs/docker-differences.md says is not there is refused by its name; what has come since is to be
// taken off the list.
func TestNotThereYet(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../docs/docker-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, ok := strings.Cut(string(raw), "## Not there yet")
	if !ok {
		t.Fatal("there is no such section")
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	n := 0
	for _, line := range strings.Split(list, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		of := quoted.FindStringSubmatch(cells[1])[1]
		for _, m := range quoted.FindAllStringSubmatch(cells[2], -1) {
			args, says := append(strings.Fields(of), m[1]), `"`+m[1]+`" is no `
			if strings.HasPrefix(m[1], "-") {
				says = "unknown flag: " + m[1]
			}
			if of == "gantry" {
				args = args[1:]
			}
			d := newDaemon(t)
			if code := d.gantry(args...); code == 0 || !strings.Contains(d.err.String(), says) {
				t.Errorf("gantry %s: exit %d %s", strings.Join(args, " "), code, d.err.String())
			}
			n++
		}
	}
	if n < 50 {
		t.Errorf("only %d things were read", n)
	}
}
