package images

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/gantryd/gantry/ctl/cli"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// steps are how a pull of two layers goes.
func steps() []*typesv1.Progress {
	return []*typesv1.Progress{
		{Verb: "resolve", Message: "registry.example"},
		{Id: "aaaa", Verb: "download", Total: 2000},
		{Id: "aaaa", Verb: "download", Current: 1000, Total: 2000},
		{Id: "bbbb", Verb: "exists"},
		{Id: "aaaa", Verb: "unpack", Current: 1, Total: 2},
		{Id: "aaaa", Verb: "done"},
		{Verb: "sign"},
	}
}

func TestProgressLines(t *testing.T) {
	t.Parallel()
	for quiet, want := range map[bool]string{
		true:  "",
		false: "looking up (registry.example)\naaaa: downloading 2kB\nbbbb: here already\naaaa: unpacking\naaaa: done\nsign\n",
	} {
		var out bytes.Buffer
		p := newProgress(&cli.Env{}, &out, quiet)
		for _, m := range steps() {
			p.update(m)
		}
		p.close(true)
		if out.String() != want {
			t.Errorf("quiet %t:\n%s\nwant\n%s", quiet, out.String(), want)
		}
	}
}

// TestProgressBars draws on a terminal; a pull that fails ends its bars as well.
func TestProgressBars(t *testing.T) {
	t.Parallel()
	for _, ok := range []bool{true, false} {
		master, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: 120}); err != nil {
			t.Fatal(err)
		}
		drawn := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(master) // EIO at the end, once the other side is closed
			drawn <- string(b)
		}()
		p := newProgress(&cli.Env{}, tty, false)
		all := steps()
		if !ok {
			all = all[:3]
		}
		for _, m := range all {
			p.update(m)
		}
		p.close(ok)
		tty.Close()
		if got := <-drawn; !strings.Contains(got, "aaaa") || ok && !strings.Contains(got, "done") {
			t.Errorf("ok %t: %q", ok, got)
		}
		master.Close()
	}
}

func TestFamiliar(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"docker.io/library/nginx:1.27":          {"nginx", "1.27"},
		"docker.io/grafana/grafana:latest":      {"grafana/grafana", "latest"},
		"ghcr.io/a/b:v1":                        {"ghcr.io/a/b", "v1"},
		"localhost:5000/app:dev":                {"localhost:5000/app", "dev"},
		"localhost:5000/app":                    {"localhost:5000/app", "<none>"},
		"localhost:5000/library/app:1":          {"localhost:5000/library/app", "1"},
		"docker.io/library/nginx@sha256:0123":   {"nginx", "<none>"},
		"docker.io/library/nginx:1@sha256:0123": {"nginx", "1"},
		"hello:latest":                          {"hello", "latest"},
		"":                                      {"<none>", "<none>"},
	} {
		if repository, tag := familiar(in); repository != want[0] || tag != want[1] {
			t.Errorf("%q: %q, %q", in, repository, tag)
		}
	}
}
