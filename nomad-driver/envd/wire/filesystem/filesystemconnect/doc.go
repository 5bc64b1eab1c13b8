// Package filesystemconnect joins the protocol of package filesystem to Connect RPC. It is generated and owns no behaviour.
package filesystemconnect
