package escape

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/internal/unpack"
	"github.com/gantryd/gantry/test/harness"
)

// tree describes everything below a directory: names, modes, owners, contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		st, err := os.Lstat(p)
		must(t, err)
		s := st.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d links %d", strings.TrimPrefix(p, dir), st.Mode(), s.Uid, s.Gid, s.Nlink)
		if st.Mode().IsRegular() {
			raw, err := os.ReadFile(p)
			must(t, err)
			fmt.Fprintf(&b, " %q", raw)
		}
		b.WriteString("\n")
		return nil
	}))
	return b.String()
}

// unpacked unpacks a layer, which hostile makes for a directory of the host's, and answers what has
// become of that.
func unpacked(t *testing.T, form unpack.Form, hostile func(host string) []harness.Entry) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gantry-escape-")
	must(t, err)
	defer os.RemoveAll(dir)
	host, layer := filepath.Join(dir, "host"), filepath.Join(dir, "layer")
	must(t, os.MkdirAll(filepath.Join(host, "sub"), 0o700), os.Mkdir(layer, 0o755), os.WriteFile(filepath.Join(host, "secret"), []byte("secret"), 0o600))
	before := tree(t, host)
	job := unpack.Job{Form: form, Mounts: []unpack.Mount{{Type: "bind", Source: layer, Options: []string{"rbind", "rw"}}}}
	_, err = unpack.Run(t.Context(), job, bytes.NewReader(harness.TarLayer(t, hostile(host)...)))
	if after := tree(t, host); after != before {
		return "the host's directory is now\n" + after
	}
	if inside := tree(t, layer); strings.Contains(inside, `"secret"`) {
		return "the layer has the host's secret:\n" + inside
	}
	t.Logf("%s: %v", form, err)
	return ""
}

// TestLayerLinks (CVE-2018-15664, Docker, in its other place: where an image's files are written from
// outside): a link in a layer leads to the host, and a later entry goes through it.
func TestLayerLinks(t *testing.T) {
	for name, later := range map[string][]harness.Entry{
		"file":      {harness.File("out/made", "by an image", 0o644)},
		"directory": {harness.Dir("out/made")},
		"link":      {harness.Symlink("out/made", "anything")},
		"device":    {{Header: tar.Header{Typeflag: tar.TypeChar, Name: "out/made", Devmajor: 1, Devminor: 3, Mode: 0o666}}},
		"replaced":  {harness.File("out/secret", "by an image", 0o4755)},
		"removed":   {harness.File("out/.wh.secret", "", 0o644)},
		"emptied":   {harness.File("out/.wh..wh..opq", "", 0o644)},
		"owner":     {{Header: tar.Header{Typeflag: tar.TypeDir, Name: "out/sub/", Mode: 0o777, Uid: 1000}}},
	} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				return unpacked(t, unpack.Apply, func(host string) []harness.Entry {
					return append([]harness.Entry{harness.Symlink("out", host)}, later...)
				})
			}, insecure.Layer, insecure.Cell)
		})
	}
}

// TestLayerClimbs: layers that try to get out in ways that are refused before a name is resolved.
func TestLayerClimbs(t *testing.T) {
	for _, form := range []unpack.Form{unpack.Apply, unpack.Overlay} {
		for name, hostile := range map[string]func(host string) []harness.Entry{
			"dots": func(host string) []harness.Entry {
				return []harness.Entry{harness.File("../../../../../../.."+host+"/made", "x", 0o644)}
			},
			"absolute": func(host string) []harness.Entry { return []harness.Entry{harness.File(host+"/made", "x", 0o644)} },
			"inner dots": func(host string) []harness.Entry {
				return []harness.Entry{harness.File("a/../../host/made", "x", 0o644)}
			},
			"whiteout dots": func(string) []harness.Entry { return []harness.Entry{harness.File("a/.wh...", "", 0o644)} },
			"relative link": func(string) []harness.Entry {
				return []harness.Entry{harness.Symlink("out", "../host"), harness.File("out/made", "x", 0o644)}
			},
			"two links": func(host string) []harness.Entry {
				return []harness.Entry{harness.Symlink("a", "b"), harness.Symlink("b", host), harness.File("a/made", "x", 0o644)}
			},
			"hard link": func(host string) []harness.Entry {
				return []harness.Entry{{Header: tar.Header{Typeflag: tar.TypeLink, Name: "mine", Linkname: host + "/secret"}}}
			},
			"hard link through a link": func(host string) []harness.Entry {
				return []harness.Entry{harness.Symlink("out", host), {Header: tar.Header{Typeflag: tar.TypeLink, Name: "mine", Linkname: "out/secret"}}}
			},
			// CVE-2021-32760, containerd: a mode that was set through a link.
			"mode through a link": func(host string) []harness.Entry {
				return []harness.Entry{
					harness.Symlink("a", host+"/secret"),
					{Header: tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a", Mode: 0o777}},
					{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "b", Linkname: host + "/secret", Mode: 0o777, Uid: 1000}},
				}
			},
			"written through a hard link to a link": func(host string) []harness.Entry {
				return []harness.Entry{harness.Symlink("a", host+"/secret"), {Header: tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}}, harness.File("b", "x", 0o644)}
			},
		} {
			t.Run(string(form)+" "+name, func(t *testing.T) {
				if got := unpacked(t, form, hostile); got != "" {
					t.Errorf("escaped: %s", got)
				}
			})
		}
	}
}

// TestNothingOfTheImageIsLoaded (CVE-2019-14271, Docker): a helper in the container's root, with the
// host's power, loaded a library that the image had brought. Of gantry's programs none loads anything.
func TestNothingOfTheImageIsLoaded(t *testing.T) {
	b := box(t)
	// The attack: who is executed in an image's root gets its loader from there, which is the attacker.
	helper, interpreter := dynamicProgram(t)
	raw, err := os.ReadFile(helper)
	must(t, err)
	b.File("helper", string(raw), 0o755)
	bring(t, b, interpreter, 0o755)
	b.File("etc/image", "the image's program, outside", 0o644)
	cmd := exec.Command("/helper")
	cmd.Args = []string{"helper", "read", "/etc/image"}
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: b.Lower}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "outside") {
		t.Errorf("the attack does not work on a program that loads: %v %s", err, out)
	}
	bin := harness.Programs(t, "")
	for _, name := range []string{"gantry", "gantryd", "gantry-shim", "gantry-plugin"} {
		if i := interpreterOf(t, filepath.Join(bin, name)); i != "" {
			t.Errorf("%s is loaded by %s", name, i)
		}
	}
}

// dynamicProgram is a program of the host's that needs a loader.
func dynamicProgram(t *testing.T) (path, interpreter string) {
	t.Helper()
	for _, p := range []string{"/usr/bin/id", "/bin/ls", "/usr/bin/env"} {
		if i := interpreterOf(t, p); i != "" {
			return p, i
		}
	}
	t.Fatal("no program of this host is loaded dynamically")
	return "", ""
}

func interpreterOf(t *testing.T, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	must(t, err)
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 && f.Section(".interp") == nil {
		return strings.Join(libs, " ")
	}
	s := f.Section(".interp")
	if s == nil {
		return ""
	}
	raw, err := s.Data()
	must(t, err)
	return strings.TrimRight(string(raw), "\x00")
}
