package vm

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// initrd is a cpio archive in the "newc" format (cpio(5)), the one that the kernel unpacks.
type initrd struct {
	b   bytes.Buffer
	ino int
	had map[string]bool
}

func newInitrd() *initrd { return &initrd{had: map[string]bool{}} }

func (r *initrd) entry(name string, mode uint32, data []byte) {
	if r.had[name] {
		return
	}
	r.had[name] = true
	if dir := filepath.Dir(name); dir != "." {
		r.dir(dir)
	}
	r.ino++
	fmt.Fprintf(&r.b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", r.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	r.b.WriteString(name + "\x00")
	r.pad()
	r.b.Write(data)
	r.pad()
}

func (r *initrd) pad() {
	for r.b.Len()%4 != 0 {
		r.b.WriteByte(0)
	}
}

func (r *initrd) dir(name string) { r.entry(name, 0o040755, nil) }

func (r *initrd) link(name, target string) { r.entry(name, 0o120777, []byte(target)) }

func (r *initrd) file(name string, data []byte) { r.entry(name, 0o100755, data) }

// copy takes a file of this machine, under another name.
func (r *initrd) copy(name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	r.file(name, data)
	return nil
}

// tree takes a directory of this machine.
func (r *initrd) tree(name, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return r.copy(filepath.Join(name, rel), path)
	})
}

// write ends the archive and writes it, compressed.
func (r *initrd) write(path string) error {
	r.entry("TRAILER!!!", 0, nil)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(r.b.Bytes()); err != nil {
		return err
	}
	return z.Close()
}

// modules are the paths of kernel modules and all that they need, in the order in which to load
// them, from the modules.dep of a kernel's tree.
func modules(tree string, names ...string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs, paths := map[string][]string{}, map[string]string{}
	for _, l := range strings.Split(string(raw), "\n") {
		path, deps, ok := strings.Cut(l, ":")
		if !ok {
			continue
		}
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
		paths[name] = path
		needs[path] = strings.Fields(deps)
	}
	var order []string
	seen := map[string]bool{}
	var add func(path string)
	add = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		for _, d := range needs[path] {
			add(d)
		}
		order = append(order, path)
	}
	sort.Strings(names)
	for _, n := range names {
		if p, ok := paths[n]; ok { // what is not a module is built in
			add(p)
		}
	}
	return order, nil
}
