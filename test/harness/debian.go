package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// debianLayers are the paths of each layer of the Debian image: what a build in steps leaves.
var debianLayers = []string{
	"--exclude=./usr --exclude=./var --exclude=./dev/* .",
	"--exclude=./usr/lib --exclude=./usr/share --exclude=./usr/bin ./usr",
	"./usr/bin",
	"./usr/lib",
	"./usr/share",
	"./var",
}

// DebianLayout makes a Debian system with debootstrap and writes it as an OCI layout: seven
// layers, more than 150 MB; the last one holds what makes layers hard (whiteouts, hard links,
// capabilities, devices, sparse files). It takes half a minute, most of it Debian's own scripts.
func DebianLayout(t testing.TB, dir, layout string) {
	t.Helper()
	root := filepath.Join(dir, "debian-root")
	run := func(line string, args ...any) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", fmt.Sprintf(line, args...))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd.Args[2], err, out)
		}
	}
	run("debootstrap --variant=minbase --include=python3-minimal,libpython3-stdlib,less,vim-tiny,libcap2-bin,procps,locales bookworm %s >%s/debootstrap.log 2>&1 || { tail -20 %s/debootstrap.log; exit 1; }", root, dir, dir)
	var layers []Layer
	for i, paths := range debianLayers {
		file := filepath.Join(dir, fmt.Sprint("layer", i, ".tar"))
		run("tar -C %s --numeric-owner --xattrs --xattrs-include='*' --sort=name -cf %s %s", root, file, paths)
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, raw)
	}
	top := filepath.Join(dir, "debian-top")
	run(`mkdir -p %[1]s/opt/hard %[1]s/usr/share/doc %[1]s/var/cache/apt
cd %[1]s
echo one > opt/hard/a; ln opt/hard/a opt/hard/b; ln opt/hard/a opt/c; ln -s hard/a opt/link
cp /bin/busybox opt/capable; setcap cap_net_raw+ep opt/capable
echo x > opt/attr; setfattr -n user.gantry -v "a value" opt/attr
mknod opt/null c 1 3; mkfifo opt/pipe
truncate -s 50M opt/sparse; printf end >> opt/sparse
echo setuid > opt/setuid; chown 12345:54321 opt/setuid; chmod 6755 opt/setuid
touch -d '2001-02-03 04:05:06.789012345' opt/old; touch -d '1999-01-01 00:00:00.5' opt/hard
printf 'a name with \303\244 and spaces' > 'opt/a name with ä and spaces'
mkdir -m 1777 opt/sticky
touch usr/share/.wh.man var/cache/apt/.wh..wh..opq; echo new > var/cache/apt/new
printf 'deb [trusted=yes] file:/nowhere ./\n' > opt/sources`, top)
	file := filepath.Join(dir, "top.tar")
	run("tar -C %s --format=posix --sparse --numeric-owner --xattrs --xattrs-include='*' --sort=name -cf %s opt usr/share/.wh.man var/cache/apt", top, file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	layers = append(layers, raw)
	WriteLayout(t, layout, v1.ImageConfig{Cmd: []string{"bash"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}, layers...)
	run("rm -rf %s %s %s/*.tar", root, top, dir)
}
