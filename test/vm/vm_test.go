package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// bootLimit is generous: emulation is some thirty times slower than the machine.
const bootLimit = 12 * time.Minute

// needed are the modules of Debian's kernel that gantry uses.
var needed = []string{
	"overlay", "veth", "bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_fib_ipv4", "nft_fib_inet", "nft_fib_ipv6", "nft_reject_inet", "nft_redir", "nf_nat", "nf_conntrack", "nft_numgen", "nft_hash", "nft_limit", "nft_log",
}

// TestOldestKernel boots the kernel once for each way to mount cgroups, and works there.
func TestOldestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test packs a root filesystem: run it as root")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal(`no qemu-system-x86_64; "make setup" installs qemu-system-x86`)
	}
	dir := t.TempDir()
	kernel := fetchKernel(t, dir)
	data := registryData(t, dir)
	for _, cgroups := range []string{"v2", "v1"} {
		t.Run("cgroup "+cgroups, func(t *testing.T) {
			image := filepath.Join(dir, "initrd-"+cgroups+".gz")
			pack(t, kernel, data, cgroups, image)
			judge(t, boot(t, kernel.image, image))
		})
	}
}

type kernel struct{ image, tree, release string }

// fetchKernel takes Debian's cloud kernel out of its package, without installing it.
func fetchKernel(t *testing.T, dir string) kernel {
	t.Helper()
	script := `set -e; cd "$1"
p=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2}' | head -1)
apt-get download "$p" >/dev/null 2>&1
dpkg -x linux-image-*.deb kernel && rm linux-image-*.deb
r=$(ls kernel/lib/modules); depmod -b kernel "$r"; echo "$r"`
	out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("fetch the kernel: %v\n%s", err, out)
	}
	r := strings.TrimSpace(string(out))
	return kernel{filepath.Join(dir, "kernel/boot/vmlinuz-"+r), filepath.Join(dir, "kernel/lib/modules", r), r}
}

// registryData fills a registry here, whose files the machine takes with it.
func registryData(t *testing.T, dir string) string {
	t.Helper()
	ns := harness.NewNetNS(t)
	data := filepath.Join(dir, "registry")
	harness.StartRegistry(t, ns, "127.0.0.1:5000", data)
	layout := filepath.Join(dir, "layout")
	harness.WriteLayout(t, layout, v1.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, harness.BusyboxLayer(t), harness.TarLayer(t, harness.File("second", "layer", 0o644)))
	var out []byte
	var err error
	ns.Do(func() {
		out, err = exec.Command("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://127.0.0.1:5000/busybox:latest").CombinedOutput()
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return data
}

// pack writes the machine's root filesystem.
func pack(t *testing.T, k kernel, data, cgroups, path string) {
	t.Helper()
	r := newInitrd()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "var", "etc", "root"} {
		r.dir(d)
	}
	check(r.copy("bin/busybox", "/bin/busybox"))
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	check(err)
	for _, a := range strings.Fields(string(applets)) {
		r.link("bin/"+a, "busybox")
	}
	bin := harness.Programs(t, "")
	for _, p := range []string{"gantry", "gantryd", "gantry-shim", "gantry-plugin"} {
		check(r.copy("usr/bin/"+p, filepath.Join(bin, p)))
	}
	registry, err := exec.LookPath("docker-registry")
	check(err)
	check(r.copy("usr/bin/docker-registry", registry))
	libraries, _ := exec.Command("ldd", registry).Output()
	for _, lib := range regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(libraries), -1) {
		check(r.copy(strings.TrimPrefix(lib, "/"), lib))
	}
	check(r.tree("registry/data", filepath.Join(data, "data")))
	r.file("registry/config.yml", []byte("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: /registry/data}\nhttp: {addr: \"127.0.0.1:5000\"}\n"))
	order, err := modules(k.tree, needed...)
	check(err)
	var load strings.Builder
	for _, m := range order {
		check(r.copy("lib/modules/"+filepath.Base(m), filepath.Join(k.tree, m)))
		fmt.Fprintf(&load, "insmod /lib/modules/%s\n", filepath.Base(m))
	}
	r.file("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	r.file("etc/group", []byte("root:x:0:\n"))
	r.file("etc/resolv.conf", []byte("nameserver 192.0.2.1\n"))
	r.file("load", []byte(load.String()))
	script, err := os.ReadFile("testdata/init.sh")
	check(err)
	r.file("init", bytes.ReplaceAll(script, []byte("@CGROUPS@"), []byte(cgroups)))
	check(r.write(path))
}

// boot runs the machine to its end and returns what it said on its serial line.
func boot(t *testing.T, kernel, initrd string, more ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), bootLimit, errors.New("the machine did not end"))
	defer cancel()
	args := []string{
		"-accel", "tcg,thread=multi", "-smp", "2", "-m", "1536", "-nographic", "-no-reboot", "-nic", "none",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet rdinit=/init",
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, more...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v (%v)", err, context.Cause(ctx))
	}
	return string(out)
}

// judge wants every line of the machine's own report to be well, and the last one to be there.
func judge(t *testing.T, said string) {
	t.Helper()
	ok, done := 0, false
	for _, l := range strings.Split(said, "\n") {
		l = strings.TrimSpace(l)
		verdict, isVerdict := strings.CutPrefix(l, "VM ")
		switch {
		case !isVerdict:
		case strings.HasPrefix(verdict, "ok "):
			ok++
		case verdict == "done":
			done = true
		default:
			t.Error(l)
		}
	}
	if !done || ok < 15 {
		t.Errorf("%d checks were well, the report is complete: %v", ok, done)
	}
	if t.Failed() {
		t.Log(said)
	}
}
