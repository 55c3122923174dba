package native

import (
	"testing"

	"github.com/gantryd/gantry/snapshotters/snapshottest"
)

func TestSuite(t *testing.T) {
	snapshottest.Run(t, func() snapshottest.Driver { return New() })
}

func BenchmarkPrepareRemove(b *testing.B) {
	snapshottest.Bench(b, func() snapshottest.Driver { return New() })
}
