package runtimetest

import (
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

// The names that kernels without them refuse.
func hasAppArmor() bool {
	raw, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(raw), "Y")
}

func hasSELinux() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
}

// A profile for containers, if one is loaded.
func loadedProfile() string {
	raw, _ := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	for _, want := range []string{"gantry-runtimetest", "gantry-default", "docker-default"} {
		if strings.Contains(string(raw), want+" (") {
			return want
		}
	}
	return "gantry-default"
}

const showProfile = "cat /proc/self/attr/apparmor/current"

var labelFeatures = []feature{
	{name: "process.apparmorProfile", here: hasAppArmor, ask: spec(showProfile, func(s *specs.Spec) { s.Process.ApparmorProfile = loadedProfile() }), more: appArmor},
	{name: "process.apparmorProfile (unconfined)", ask: spec("true", func(s *specs.Spec) { s.Process.ApparmorProfile = "unconfined" }), more: func(b *Box) {
		b.expect(spec("echo fine", func(s *specs.Spec) { s.Process.ApparmorProfile = "unconfined" })(b), "fine")
	}},
	{name: "process.selinuxLabel", here: hasSELinux, ask: spec("tr -d '\\0' </proc/self/attr/current", func(s *specs.Spec) {
		s.Process.SelinuxLabel = "system_u:system_r:container_t:s0:c1,c2"
	}), want: "system_u:system_r:container_t:s0:c1,c2"},
	{name: "linux.mountLabel", here: hasSELinux, ask: spec("grep -c ' /dev/shm .*container_file_t:s0:c1,c2' /proc/self/mounts", func(s *specs.Spec) {
		s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
	}), want: "1"},
}

func appArmor(b *Box) {
	c := spec("true", func(s *specs.Spec) { s.Process.ApparmorProfile = "gantry-is-not-loaded" })(b)
	if m, err := b.Create(c); err == nil {
		if err = m.Init().Start(Context(b.T)); err == nil {
			m.Wait()
			b.T.Error("it runs under a profile that is not loaded")
		}
	}
	name := loadedProfile()
	raw, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	b.check(err)
	if !strings.Contains(string(raw), name+" (") {
		b.T.Skipf("SKIPPED: no profile for containers is loaded (%s): apparmor_parser -r one", name)
	}
	confined := func(script string) *runtime.Config {
		return spec(script, func(s *specs.Spec) { s.Process.ApparmorProfile = name })(b)
	}
	b.expect(confined(showProfile), name+" (enforce)")
	if name == "gantry-runtimetest" { // the profile of test/vm
		b.expect(confined("echo x >/allowed && echo allowed; (echo x >/forbidden) 2>/dev/null || echo forbidden"), "allowed\nforbidden")
	}
	c = confined(showProfile)
	c.Spec.Process.NoNewPrivileges = true
	b.expect(c, name+" (enforce)")
	m := b.Start(confined("sleep 1000; true"))
	if out, _, err := m.Exec(m.Process("/bin/sh", "-c", showProfile)); err != nil || strings.TrimSpace(out) != name+" (enforce)" {
		b.T.Errorf("exec: %s %v", out, err)
	}
}
