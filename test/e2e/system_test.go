package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/gantryd/gantry/test/harness"
)

// TestInfo asks the daemon what it is.
func TestInfo(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	if out := m.Must("system", "info", "-f", "{{.Instance}} {{.Root}} {{.Snapshotter}}"); out != m.Instance+" "+m.Root+" overlay" {
		t.Errorf("info: %q", out)
	}
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sh", "-c", "head -c 5000000 /dev/zero > /big; sleep 1000")
	harness.Eventually(t, 10*time.Second, "5 MB are in the container", func() bool {
		return m.Try("exec", "c", "sh", "-c", "[ $(wc -c < /big) = 5000000 ]").Code == 0
	})
	out := m.Must("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Bytes}}")
	if !strings.Contains(out, "images 2 1") && !strings.Contains(out, "images 1 1") || !strings.Contains(out, "containers 1 1 5") {
		t.Errorf("df:\n%s", out)
	}
}

// TestEvents replays from a revision, and says so when that is too long ago.
func TestEvents(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	before := m.Must("system", "info", "-f", "{{.Revision}}")
	m.Must("run", "--name", "c", image, "true")
	m.Must("rm", "c")
	var verbs []string
	for _, l := range strings.Split(m.Must("events", "--after", before, "--no-follow", "--filter", "kind=containers", "--format", "json"), "\n") {
		var e struct{ Verb, Facts string }
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		verbs = append(verbs, e.Verb)
	}
	if len(verbs) < 3 || verbs[0] != "create" || verbs[len(verbs)-1] != "remove" {
		t.Errorf("verbs: %v", verbs)
	}
	m.Restart()
	if out := m.Must("events", "--after", before, "--no-follow", "--filter", "kind=containers", "--filter", "verb=remove"); !strings.Contains(out, "remove") {
		t.Errorf("the history did not survive: %q", out)
	}
	m.Fails(1, "the store is at", "events", "--after", "99999999", "--no-follow")
	// As it is after ten thousand events more.
	m.Stop()
	kept := forgetEvents(t, filepath.Join(m.Root, "gantry.db"), 3)
	m.Start()
	m.Fails(1, fmt.Sprintf("watch after revision %d: events are kept since %d: list, then watch from there", kept-1, kept), "events", "--after", fmt.Sprint(kept-1))
	m.Must("events", "--after", fmt.Sprint(kept), "--no-follow")
	if out := m.Must("events", "--from-start", "--no-follow"); !strings.Contains(out, "remove") {
		t.Errorf("from the start: %q", out)
	}
}

// forgetEvents drops the oldest n events of a store that nobody has open, and returns the revision of the last of them.
func forgetEvents(t *testing.T, path string, n int) (last uint64) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bolt.Tx) error {
		events := tx.Bucket([]byte("v1")).Bucket([]byte("events"))
		for range n {
			k, _ := events.Cursor().First()
			last = binary.BigEndian.Uint64(k)
			if err := events.Delete(k); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return last
}

// TestSocket is root's and the group's; no one else gets in.
func TestSocket(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	st, err := os.Stat(m.State + "/gantry.sock")
	if err != nil {
		t.Fatal(err)
	}
	want, gid := os.FileMode(0o600), "0"
	if g, err := user.LookupGroup("gantry"); err == nil {
		want, gid = 0o660, g.Gid
	}
	own, ok := st.Sys().(*syscall.Stat_t)
	if !ok || st.Mode().Perm() != want || own.Uid != 0 || fmt.Sprint(own.Gid) != gid {
		t.Errorf("mode %o of %d:%d, want %o of 0:%s", st.Mode().Perm(), own.Uid, own.Gid, want, gid)
	}
	cmd := m.Command("info")
	cmd.Path = filepath.Join(m.Dir, "gantry")
	m.Sh("cp %s/gantry %s && chmod 755 %s", m.Bin, cmd.Path, cmd.Path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if r := m.Run(cmd); r.Code == 0 || !strings.Contains(r.Err, "permission denied") {
		t.Errorf("nobody got in: exit %d %s%s", r.Code, r.Out, r.Err)
	}
}

// TestTLS serves tcp to whom the authority has signed, and to nobody else.
func TestTLS(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t)
	m.Sh(`cd %s
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2 2>/dev/null
for n in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $n.key -out $n.csr -subj /CN=$n 2>/dev/null
  printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
  openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out $n.pem -days 2 -extfile ext 2>/dev/null
done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout rogue.key -out rogue.pem -subj /CN=rogue -days 2 2>/dev/null`, m.Dir)
	f := func(n string) string { return filepath.Join(m.Dir, n) }
	harness.Flags("--listen", m.Host, "--listen", "tcp://127.0.0.1:7777", "--tls-ca", f("ca.pem"), "--tls-cert", f("server.pem"), "--tls-key", f("server.key"))(m)
	m.Start()
	tcp := []string{"--host", "tcp://127.0.0.1:7777", "--tls-ca", f("ca.pem")}
	m.Must(append(tcp, "--tls-cert", f("client.pem"), "--tls-key", f("client.key"), "info")...)
	m.Fails(7, "", append(tcp, "--tls-cert", f("rogue.pem"), "--tls-key", f("rogue.key"), "info")...)
	m.Fails(2, "--tls-ca", "--host", "tcp://127.0.0.1:7777", "info")
}

// TestSeveralDaemons: two on one machine, in one network namespace, and neither sees the other.
func TestSeveralDaemons(t *testing.T) {
	t.Parallel()
	one, two := harness.New(t), harness.Bare(t)
	two.NS = one.NS
	two.Start()
	one.Must("run", "-d", "--name", "c", "--network", "none", "hello")
	two.Must("run", "-d", "--name", "c", "--network", "none", "hello")
	if a, b := one.Must("ps", "-aq", "--no-trunc"), two.Must("ps", "-aq", "--no-trunc"); a == b || len(a) != 64 || len(b) != 64 {
		t.Errorf("%q and %q", a, b)
	}
	for _, m := range []*harness.Machine{one, two} {
		if out := m.Must("run", "--rm", "hello"); !strings.Contains(out, "gantry") {
			t.Errorf("on the bridge beside another daemon: %q", out)
		}
	}
	one.Must("rm", "-f", "c")
	two.Must("inspect", "c")
	defer func() { // each machine's end looks at the namespace that they share
		for _, m := range []*harness.Machine{one, two} {
			m.Try("rm", "-f", "c")
		}
		one.Stop()
	}()
	// A second daemon on the same directories is refused, and says what to do.
	cmd := exec.Command(filepath.Join(one.Bin, "gantryd"), "--root", one.Root, "--state", one.State)
	if r := one.Run(cmd); r.Code == 0 || !strings.Contains(r.Err, "another gantryd") {
		t.Errorf("a second daemon on the same directories: exit %d %s", r.Code, r.Err)
	}
}

// TestReload: SIGHUP reads registries, log level and limits again, and they hold; a wrong file changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t, harness.LevelFromFile())
	config := filepath.Join(m.Dir, "gantryd.toml")
	log := func() string {
		raw, _ := os.ReadFile(m.LogPath())
		return string(raw)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func(text, says string) {
		t.Helper()
		before := strings.Count(log(), says)
		write(text)
		_ = syscall.Kill(m.Pid(), syscall.SIGHUP)
		harness.Eventually(t, 5*time.Second, "it says "+says, func() bool { return strings.Count(log(), says) > before })
	}
	const read = "configuration read again"
	write("[limits]\nplugin_calls = 1\n")
	harness.Flags("--config", config)(m)
	m.Start()
	image := m.Busybox()

	// Registries: one that is not on loopback is spoken to without TLS only where that is configured.
	r := &harness.Registry{Address: harness.UplinkAddress + ":5000", Data: filepath.Join(m.Dir, "plain")}
	harness.StartRegistry(t, m.NS, r.Address, r.Data)
	r.On(m)
	ref := r.Push("plain", v1.ImageConfig{}, harness.BusyboxLayer(t))
	m.Fails(5, "plain_http", "pull", "-q", ref)
	if strings.Contains(log(), "level=DEBUG") {
		t.Error("there are debug lines before they were asked for")
	}
	text := "log_level = \"debug\"\n[registries.\"" + r.Address + "\"]\nplain_http = true\n[limits]\nlog_max_size = \"20k\"\nlog_max_files = 2\nplugin_calls = 1\n"
	reload(text, read)
	m.Must("pull", "-q", ref)

	// Log level.
	harness.Eventually(t, 5*time.Second, "a debug line", func() bool { return strings.Contains(log(), "level=DEBUG") })

	// The limits of logs, for containers that say nothing themselves.
	m.Must("run", "--name", "c", image, "seq", "1", "50000")
	if r := m.Try("logs", "c"); len(r.Out) > 40<<10 || !strings.Contains(r.Err, "rotated") {
		t.Errorf("the log has %d bytes, notice %q", len(r.Out), r.Err)
	}

	// Calls under way in one plugin: a stopped one shows how many get there.
	const overlay = "snapshotter/overlay"
	calls := func(n string) func() bool {
		return func() bool { return m.Must("plugin", "inspect", "-f", "{{.Calls}}", overlay) == n }
	}
	pid := pluginPid(m, overlay)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var creates sync.WaitGroup
	for range 3 {
		creates.Go(func() {
			if r := m.Try("create", image); r.Code != 0 {
				t.Errorf("create: exit %d %s", r.Code, r.Err)
			}
		})
	}
	harness.Eventually(t, 5*time.Second, "one call under way", calls("1"))
	reload(strings.Replace(text, "plugin_calls = 1", "plugin_calls = 8", 1), read)
	harness.Eventually(t, 5*time.Second, "three calls under way", calls("3"))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	creates.Wait()

	reload("nonsense = 1\n", "nonsense")
	m.Must("info")
	write("log_level = \"info\"\n")
	cmd := exec.Command(filepath.Join(m.Bin, "gantryd"), "--config", config, "--check-config")
	if r := m.Run(cmd); r.Code != 0 {
		t.Errorf("--check-config: exit %d %s", r.Code, r.Err)
	}
}
