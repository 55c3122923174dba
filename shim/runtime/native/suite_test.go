package native

import (
	"fmt"
	"os"
	"testing"

	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	if err := Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFirst(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	out, code := b.Run(b.Sh("echo hello; id; cat /proc/self/mountinfo; ls -la /dev /proc/self/fd; hostname; cat /proc/self/status | grep -E 'Cap|Seccomp|NoNew'; cat /proc/self/cgroup; pwd; ip a"))
	t.Log(out, code, b.Warned())
}
