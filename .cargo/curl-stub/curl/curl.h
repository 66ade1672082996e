/* Empty on purpose. librdkafka 2.11+ includes this header where OAUTHBEARER over OIDC is switched off
   (confluentinc/librdkafka#5135); no declaration of it is used. */
