package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigErrors holds every mistake to a sentence that names it.
func TestConfigErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"root = \"/a\"\nroto = \"/b\"\n", `line 2: key "roto" is not known`},
		{"[limits]\ndownloads = 4\nuploads = 4\n", `line 3: key "limits.uploads" is not known`},
		{"root = \n", "line 1, column"},
		{"root = 5\n", "line 1"},
		{"root = \"var/lib\"\n", "absolute path"},
		{"root = \"/a:b\"\n", "without colon"},
		{"root = \"/a\"\nstate = \"/a/\"\n", "root and state are both"},
		{"listen = [\"tcp://0.0.0.0:1\"]\n", "--tls-ca"},
		{"listen = [\"http://x\"]\n", "unix:// and tcp:// are known"},
		{"listen = [\"unix://relative\"]\n", "unix:///path"},
		{"log_level = \"loud\"\n", "debug, info, warn and error"},
		{"[limits]\nlog_max_size = \"big\"\n", "limits.log_max_size"},
		{"[limits]\nlog_max_size = \"10\"\n", "limits.log_max_size"},
		{"[limits]\ndownloads = 0\n", "limits.downloads 0"},
		{"[limits]\nplugin_calls = -1\n", "limits.plugin_calls"},
		{"[limits]\nlog_max_files = 0\n", "limits.log_max_files"},
		{"[plugins.\"overlay\"]\n", "write snapshotter/NAME"},
		{"[plugins.\"volume/nfs\"]\nsha256 = \"12\"\n", "64 hexadecimal digits"},
		{"[plugins.\"volume/nfs\"]\npath = \"nfs\"\n", "not absolute"},
		{"[registries.\"http://x/\"]\n", "host:port"},
		{"[network]\nbridge = \"a very long name for a bridge\"\n", "no name for a link"},
		{"[network]\nsubnet = \"10.0.0.0\"\n", "no subnet"},
		{"cdi_dirs = [\"cdi\"]\n", "cdi_dirs \"cdi\""},
		{"[network]\nmtu = 12\n", "between 68 and 65535"},
		{"[runtimes.native]\npath = \"/bin/x\"\n", "runtimes.native: the native runtime is no program"},
		{"[runtimes.\"a b\"]\npath = \"/bin/x\"\n", "no name for a runtime"},
		{"[runtimes.mine]\npath = \"crun\"\n", "\"crun\" is not absolute"},
		{"[runtimes.mine]\nargs = []\n", "runtimes.mine: it has no path"},
		{"[runtimes.crun]\npaths = \"/bin/x\"\n", `line 2: key "runtimes.crun.paths" is not known`},
	} {
		path := filepath.Join(t.TempDir(), "gantryd.toml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := parseFlags([]string{"--config", path}, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = o.load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
	}
}

// TestConfigExample reads the file that is installed, which shows every key.
func TestConfigExample(t *testing.T) {
	c, err := readConfig("../docs/gantryd.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
}

// TestFlagsOverFile says which of the two wins, and what the defaults are.
func TestFlagsOverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gantryd.toml")
	if err := os.WriteFile(path, []byte("root = \"/file\"\nstate = \"/filestate\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parseFlags([]string{"--config", path, "--root", "/flag"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := o.load()
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/flag" || c.State != "/filestate" || len(c.Listen) != 1 || c.Listen[0] != "unix:///filestate/gantry.sock" {
		t.Errorf("got %+v", c)
	}
	if a, b := c.instance(), defaults().instance(); a == b || b != "gantry" {
		t.Errorf("instances %q and %q", a, b)
	}
	if b := c.bridge(); len(b) > 15 || b == defaults().bridge() {
		t.Errorf("bridge %q", b)
	}
}

// TestTCPNeedsTLS is the guard of a port that makes its visitors root.
func TestTCPNeedsTLS(t *testing.T) {
	for _, args := range [][]string{
		{"--listen", "tcp://127.0.0.1:0"},
		{"--listen", "tcp://127.0.0.1:0", "--tls-ca", "a", "--tls-cert", "b"},
		{"--listen", "tcp://127.0.0.1:0", "--tls-ca", "a", "--tls-key", "b"},
		{"--listen", "tcp://127.0.0.1:0", "--tls-cert", "a", "--tls-key", "b"},
	} {
		o, err := parseFlags(args, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		o.path = defaultConfig
		if _, err := o.load(); err == nil || !strings.Contains(err.Error(), "--tls-ca, --tls-cert and --tls-key") {
			t.Errorf("%v: got %v", args, err)
		}
	}
}

// FuzzConfig: whatever the file says, the answer is a configuration or a sentence.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("root = \"/a\"\n[limits]\ndownloads = 1\n"))
	f.Add([]byte("[plugins.\"volume/x\"]\noptions = {a = [1, {b = 2}]}\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		c := defaults()
		if parseConfig(raw, c) == nil && c.check() == nil {
			_, _ = c.pluginOptions("volume/x", nil)
		}
	})
}
