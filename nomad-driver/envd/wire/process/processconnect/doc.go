// Package processconnect joins the protocol of package process to Connect RPC. It is generated and owns no behaviour.
package processconnect
