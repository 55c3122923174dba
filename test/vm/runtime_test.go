package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// suiteModules are what the runtime's suite needs beside.
var suiteModules = []string{"overlay", "veth", "ext4", "virtio_blk", "virtio_pci"}

// TestRuntimeSuite runs the native runtime's suite on the oldest kernel, with cgroup v2 and AppArmor: each
// feature that this kernel lacks must be refused by name there.
func TestRuntimeSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test packs a root filesystem, and that needs root")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal(`no qemu-system-x86_64; "make setup" installs qemu-system-x86`)
	}
	dir := t.TempDir()
	kernel := fetchKernel(t, dir)
	program := filepath.Join(dir, "native.test")
	build := exec.Command("go", "test", "-c", "-o", program, "../../shim/runtime/native")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	parser := fetchParser(t, dir)
	image, disk := filepath.Join(dir, "suite.gz"), filepath.Join(dir, "disk")
	packSuite(t, kernel, program, parser, image)
	if out, err := exec.Command("mkfs.ext4", "-q", disk, "256M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	judge(t, boot(t, kernel.image, image, "-drive", "if=virtio,format=raw,file="+disk))
}

// profile is one for containers that forbids nothing but what shows that it is enforced.
const profile = `profile gantry-runtimetest flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  mount,
  pivot_root,
  signal,
  ptrace,
  unix,
  deny /forbidden w,
}
`

// fetchParser takes the compiler of AppArmor's profiles out of Debian's package.
func fetchParser(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `set -e; cd "$1"; apt-get download apparmor >/dev/null 2>&1; dpkg -x apparmor_*.deb apparmor; rm apparmor_*.deb`, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("fetch apparmor_parser: %v\n%s", err, out)
	}
	for _, at := range []string{"usr/sbin", "sbin"} {
		if p := filepath.Join(dir, "apparmor", at, "apparmor_parser"); exists(p) {
			return p
		}
	}
	t.Fatal("Debian's package has no apparmor_parser")
	return ""
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func packSuite(t *testing.T, k kernel, program, parser, path string) {
	t.Helper()
	r := newInitrd()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "etc", "root", "data"} {
		r.dir(d)
	}
	check(r.copy("bin/busybox", "/bin/busybox"))
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	check(err)
	for _, a := range strings.Fields(string(applets)) {
		r.link("bin/"+a, "busybox")
	}
	check(r.copy("usr/bin/native.test", program))
	check(r.copy("usr/bin/apparmor_parser", parser))
	libraries, _ := exec.Command("ldd", parser).Output()
	for _, lib := range regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(libraries), -1) {
		check(r.copy(strings.TrimPrefix(lib, "/"), lib))
	}
	r.file("profile", []byte(profile))
	order, err := modules(k.tree, suiteModules...)
	check(err)
	var load strings.Builder
	for _, m := range order {
		check(r.copy("lib/modules/"+filepath.Base(m), filepath.Join(k.tree, m)))
		fmt.Fprintf(&load, "insmod /lib/modules/%s\n", filepath.Base(m))
	}
	r.file("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	r.file("etc/group", []byte("root:x:0:\n"))
	r.file("load", []byte(load.String()))
	script, err := os.ReadFile("testdata/suite.sh")
	check(err)
	r.file("init", script)
	check(r.write(path))
}
