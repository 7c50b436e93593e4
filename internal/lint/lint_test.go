// Package lint holds the code to the rules of its layout: which package may import which,
// and why. A failure says what to do instead.
package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "quorate"
	root   = "../.."
)

// order is the product's packages from the top down. A package imports only what stands
// below it, so that data flows one way and each can be understood, tested and replaced
// without those above. A new package takes its place here.
var order = []string{
	"cmd/quorate",
	".",
	"internal/ctl",
	"internal/bench",
	"internal/httpapi",
	"internal/rpc",
	"internal/sim", // tests alone
	"internal/node",
	"internal/peer",
	"internal/config",
	"internal/consensus",
	"internal/fsm",
	"internal/auth",
	"internal/watch",
	"internal/lease",
	"internal/snapshot",
	"internal/membership",
	"internal/mvcc",
	"internal/mvcc/index",
	"internal/wal",
	"internal/vfs",
	"internal/tlsconf",
	"internal/logging",
	"internal/metrics",
	"internal/wire",
	"internal/kv",
	"internal/lint",
}

// forbidden are imports that the order would allow, with what is lost by them. A name that
// ends in "/" stands for all packages below it; package "" is every package.
var forbidden = []struct{ pkg, imports, why string }{
	{"", "go.etcd.io/etcd/server/", "quorate is its own implementation: etcd's server is for tests under test/"},
	{"", "go.etcd.io/etcd/etcdutl/", "quorate is its own implementation"},
	{"", "go.etcd.io/etcd/pkg/", "that is etcd's server in pieces"},
	{"", "github.com/soheilhy/cmux", "package rpc tells gRPC from HTTP itself"},

	{"internal/rpc", "quorate/internal/node", "the services know the member by the small interface Backend, so that they can be tested without one"},
	{"internal/httpapi", "quorate/internal/node", "the probes know the member by the small interface Member"},
	{"internal/httpapi", "quorate/internal/rpc", "the gateway is handed in; probes must not need gRPC"},
	{"internal/ctl", "quorate/internal/", "a client knows the server by the wire alone"},
	{"internal/bench", "quorate/internal/node", "the load generator measures a server from outside"},
	{"internal/bench", "quorate/internal/rpc", "the load generator measures a server from outside"},
	{"internal/config", "quorate/internal/metrics", "configuration is data"},

	{"internal/consensus", "net", "consensus does no I/O: the simulator steps it in one goroutine"},
	{"internal/consensus", "os", "consensus does no I/O"},
	{"internal/consensus", "google.golang.org/grpc", "consensus does no I/O"},
	{"internal/peer", "quorate/internal/consensus", "the wire carries messages and knows nothing of what they decide"},
	{"internal/fsm", "net", "every member must apply the same entries to the same state"},
	{"internal/fsm", "os", "every member must apply the same entries to the same state"},
	{"internal/fsm", "math/rand", "every member must apply the same entries to the same state: take random numbers as arguments"},
	{"internal/fsm", "math/rand/v2", "every member must apply the same entries to the same state: take random numbers as arguments"},
	{"internal/fsm", "google.golang.org/grpc", "the state machine must replay without a network"},
	{"internal/auth", "google.golang.org/grpc", "users and roles must replay without a network"},
	{"internal/mvcc", "google.golang.org/grpc", "the store must replay without a network"},
	{"internal/mvcc", "net", "the store must replay without a network"},
	{"internal/watch", "google.golang.org/grpc", "the hub serves any transport: a leaner one may take gRPC's place"},
	{"internal/lease", "google.golang.org/grpc", "leases must replay without a network"},
	{"internal/node", "google.golang.org/grpc", "package rpc is the only user of gRPC on the server's side"},
	{"internal/kv", "google.golang.org/protobuf/", "the vocabulary stands on nothing"},
	{"internal/wal", "google.golang.org/grpc", "the log is files"},
}

// files parses every Go file of the product, tests left out, and returns them by package
// directory.
func files(t *testing.T) map[string][]*ast.File {
	t.Helper()
	pkgs := make(map[string][]*ast.File)
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			// Modules of their own and what is not Go.
			if name := d.Name(); rel == "test" || rel == "tools" || name == "testdata" || strings.HasPrefix(name, ".") && rel != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		pkgs[dir] = append(pkgs[dir], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

func imports(f *ast.File) (paths []string) {
	for _, spec := range f.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

func TestImportsPointDown(t *testing.T) {
	for pkg, fs := range files(t) {
		at := slices.Index(order, pkg)
		if at < 0 {
			t.Errorf("package %s has no place in the order of packages: give it one in internal/lint, below all that import it", pkg)
			continue
		}
		for _, f := range fs {
			for _, path := range imports(f) {
				dir, ours := strings.CutPrefix(path, module+"/")
				if path == module {
					dir, ours = ".", true
				}
				if ours && slices.Index(order, dir) <= at {
					t.Errorf("%s imports %s, which stands above it: declare a small interface in %s that the upper package satisfies, or hand the value in", pkg, path, pkg)
				}
			}
		}
	}
}

func TestForbiddenImports(t *testing.T) {
	for pkg, fs := range files(t) {
		for _, f := range fs {
			for _, path := range imports(f) {
				if why := refused(pkg, path); why != "" {
					t.Errorf("%s must not import %s: %s", pkg, path, why)
				}
			}
		}
	}
}

func refused(pkg, path string) string {
	for _, r := range forbidden {
		if r.pkg != "" && r.pkg != pkg {
			continue
		}
		if path == r.imports || strings.HasSuffix(r.imports, "/") && strings.HasPrefix(path, r.imports) {
			return r.why
		}
	}
	return ""
}

// The binary as a whole must not contain what no package may import: a dependency could
// bring it in.
func TestBinaryHasNoServerOfEtcd(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./cmd/quorate")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, path := range strings.Fields(string(out)) {
		if strings.HasPrefix(path, "go.etcd.io/etcd/") {
			if why := refused("cmd/quorate", path); why != "" {
				t.Errorf("the binary contains %s: %s", path, why)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for pkg, fs := range files(t) {
		n := 0
		for _, f := range fs {
			if f.Doc != nil {
				n++
			}
		}
		if n != 1 {
			t.Errorf("package %s has %d package comments, want one that says what it guarantees and what it does not do", pkg, n)
		}
	}
}

func TestRulesNameRealPackages(t *testing.T) {
	pkgs := files(t)
	for _, r := range forbidden {
		if r.pkg != "" && pkgs[r.pkg] == nil {
			t.Errorf("a rule is about package %s, which there is not", r.pkg)
		}
	}
}
