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

func TestSuite(t *testing.T) { runtimetest.Run(t, newRuntime(t)) }
