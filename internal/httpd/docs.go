package httpd

import (
	_ "embed"
	"html/template"
)

//go:embed docs.html
var docsSource string

// docsTemplate returns the template of the page of the interface.
func docsTemplate() (*template.Template, error) {
	return template.New("docs").Parse(docsSource)
}
