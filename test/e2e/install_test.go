package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/harness"
)

// TestInstall installs into a directory as a packager does, with a umask that lets nobody else
// read, looks at all of it, and takes it away again.
func TestInstall(t *testing.T) {
	t.Parallel()
	dest, bin := t.TempDir(), t.TempDir()
	call := func(target string) {
		t.Helper()
		cmd := exec.Command("sh", "-c", `umask 077; exec make "$@"`, "sh", "-C", harness.Top(), target, "DESTDIR="+dest, "PREFIX=/opt/gantry", "BIN="+bin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	files := func() (found []string) {
		t.Helper()
		err := filepath.WalkDir(dest, func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			i, err := d.Info()
			found = append(found, i.Mode().String()+" "+strings.TrimPrefix(p, dest))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}

	call("install")
	if got, want := files(), []string{
		"-rw-r--r-- /etc/gantry/gantryd.toml",
		"-rwxr-xr-x /opt/gantry/bin/gantry",
		"-rwxr-xr-x /opt/gantry/bin/gantry-plugin",
		"-rwxr-xr-x /opt/gantry/bin/gantry-shim",
		"-rwxr-xr-x /opt/gantry/bin/gantryd",
		"-rw-r--r-- /opt/gantry/lib/systemd/system/gantryd.service",
	}; !slices.Equal(got, want) {
		t.Errorf("installed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	config := filepath.Join(dest, "etc/gantry/gantryd.toml")
	if out, err := exec.Command(filepath.Join(dest, "opt/gantry/bin/gantryd"), "--check-config", "--config", config).CombinedOutput(); err != nil {
		t.Errorf("the installed daemon does not take the installed configuration: %v\n%s", err, out)
	}
	checkUnit(t, dest, "opt/gantry/lib/systemd/system/gantryd.service")

	// What the operator wrote stays, whatever is installed over it or taken away.
	if err := os.WriteFile(config, []byte("log_level = \"debug\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	call("install")
	call("uninstall")
	if got := files(); !slices.Equal(got, []string{"-rw-r--r-- /etc/gantry/gantryd.toml"}) {
		t.Errorf("after make uninstall:\n%s", strings.Join(got, "\n"))
	}
	if raw, err := os.ReadFile(config); err != nil || string(raw) != "log_level = \"debug\"\n" {
		t.Errorf("the operator's configuration is now %q, %v", raw, err)
	}
}

// checkUnit wants a unit that systemd understands, and whose end is the daemon's and nobody else's.
func checkUnit(t *testing.T, dest, unit string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dest, unit))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	for _, want := range []string{
		"ExecStart=/opt/gantry/bin/gantryd",
		"ExecReload=/bin/kill -HUP $MAINPID",
		"Restart=always",
		"KillMode=process", // shims outlive the daemon
		"Delegate=yes",     // the cgroups below are gantry's
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the unit does not say %q:\n%s", want, raw)
		}
	}
	// It is verified against the programs it names, so these must be where it says.
	local := filepath.Join(t.TempDir(), "gantryd.service")
	here := strings.ReplaceAll(string(raw), "=/opt/gantry", "="+dest+"/opt/gantry")
	if err := os.WriteFile(local, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", local).CombinedOutput()
	if err != nil || strings.Contains(string(out), "gantryd.service") {
		t.Errorf("systemd-analyze verify (\"make setup\" installs systemd): %v\n%s", err, out)
	}
}
