package e2e

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

// TestLogs reads what a container wrote in every way there is.
func TestLogs(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "--name", "c", image, "sh", "-c", "seq 1 20; echo problem >&2; printf 'no newline'")
	r := m.Try("logs", "c")
	if want := lines(1, 20) + "no newline"; r.Out != want || r.Err != "problem\n" {
		t.Errorf("logs: %q and %q", r.Out, r.Err)
	}
	m.Must("run", "--name", "lines", image, "seq", "1", "20")
	if out := m.Must("logs", "--tail", "3", "lines"); out != "18\n19\n20" {
		t.Errorf("tail: %q", out)
	}
	if out := m.Must("logs", "--tail", "0", "c"); out != "" {
		t.Errorf("tail 0: %q", out)
	}
	first, _, _ := strings.Cut(m.Must("logs", "-t", "c"), "\n")
	stamp, text, _ := strings.Cut(first, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || text != "1" {
		t.Errorf("timestamps: %q", first)
	}
	if out := m.Try("logs", "--since", "1h", "c").Out; !strings.HasPrefix(out, "1\n2\n") {
		t.Errorf("since an hour: %q", out)
	}
	if out := m.Try("logs", "--until", "1h", "c").All(); out != "" {
		t.Errorf("until an hour ago: %q", out)
	}
}

// TestLogsAreBounded: the oldest lines go, whole, and the reader is told.
func TestLogsAreBounded(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", "--log-opt", "max-size=100k", "--log-opt", "max-file=2", image, "seq", "1", "100000")
	m.Must("wait", "c")
	r := m.Try("logs", "c")
	if !strings.HasSuffix(r.Out, "\n99999\n100000\n") || len(r.Out) > 300<<10 || !strings.Contains(r.Err, "rotated") {
		t.Errorf("%d bytes, ends %q, notice %q", len(r.Out), r.Out[max(len(r.Out)-20, 0):], r.Err)
	}
	first, _, _ := strings.Cut(r.Out, "\n")
	from, err := strconv.Atoi(first)
	if err != nil || r.Out != lines(from, 100000) {
		t.Errorf("what is left begins with %q, which is no whole line", first)
	}
	if size := m.Sh("du -sk %s/containers/*/log | cut -f1", m.Root); len(size) > 3 {
		t.Errorf("the log takes %s KiB", size)
	}
}

// TestLogsSurviveTheDaemon prints 2,000,000 numbered lines while gantryd is killed ten times:
// all of them are in the log, in order, once.
func TestLogsSurviveTheDaemon(t *testing.T) {
	t.Parallel()
	const n = 2000000
	m := harness.New(t)
	image := m.Busybox()
	// Slow enough that ten daemons die meanwhile: a pause after each 20,000 lines.
	m.Must("run", "-d", "--name", "c", "--log-opt", "max-size=-1", image, "sh", "-c",
		fmt.Sprintf("i=1; while [ $i -le %d ]; do seq $i $((i+19999)); i=$((i+20000)); sleep 0.05; done", n))
	for range 10 {
		m.Restart()
		time.Sleep(300 * time.Millisecond) // let it live a little: a daemon that only starts proves less
	}
	if out := m.Must("wait", "c"); out != "0" {
		t.Fatalf("exit code %s", out)
	}
	cmd := m.Command("logs", "c")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.NS.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	want := 1
	for s := bufio.NewScanner(out); s.Scan(); want++ {
		if s.Text() != fmt.Sprint(want) {
			t.Fatalf("line %d is %q", want, s.Text())
		}
	}
	if err := cmd.Wait(); err != nil || want != n+1 {
		t.Errorf("%d lines, %v", want-1, err)
	}
}

// TestLogsFollow sees lines as they come, and ends with the container.
func TestLogsFollow(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done")
	if r := m.Try("logs", "-f", "c"); r.Code != 0 || r.Out != lines(1, 5) {
		t.Errorf("exit %d, %q %s", r.Code, r.Out, r.Err)
	}
}

func lines(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}
