package native

import (
	"fmt"
	"os"
	"testing"

	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

const (
	unsealedTest = "GANTRY_TEST_UNSEALED" // this process shows what happens without Seal
	testExe      = "GANTRY_TEST_EXE"      // where the test's executable is, before it was sealed
)

func TestMain(m *testing.M) {
	if os.Getenv(unsealedTest) != "" {
		os.Exit(m.Run())
	}
	if exe, err := os.Readlink("/proc/self/exe"); err == nil && !sealed() {
		_ = os.Setenv(testExe, exe)
	}
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

func TestFeatures(t *testing.T) { runtimetest.RunFeatures(t, newRuntime(t), nil) }
